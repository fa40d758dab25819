"""What pyproject.toml cannot say: the packages, and that a wheel also holds the folders beside src."""

from setuptools import find_packages, setup

# Files that dualscore.shipped looks for, at home at the root of the checkout.
SHIPPED = ("experiments", "studies", "sweeps")
# The models in the box, and their cards.
BOXED = ["models/*/model.safetensors", "models/*/README.md"]

setup(
    packages=[
        *find_packages("src"),
        *find_packages(include=["data_prep*"]),
        *(f"dualscore.shipped.{folder}" for folder in SHIPPED),
    ],
    package_dir={"": "src", "data_prep": "data_prep"}
    | {f"dualscore.shipped.{folder}": folder for folder in SHIPPED},
    package_data={"dualscore": ["py.typed"], "dualscore.cluster": ["job.sh"], "dualscore.shipped": BOXED}
    | {f"dualscore.shipped.{folder}": ["*.yaml"] for folder in SHIPPED},
    include_package_data=False,
)
