"""What pyproject.toml cannot say: the packages, and that a wheel also holds the folders beside src."""

from setuptools import find_packages, setup

# Files that dualscore.shipped looks for, at home at the root of the checkout.
SHIPPED = ("experiments", "studies", "sweeps")

setup(
    packages=[
        *find_packages("src"),
        *find_packages(include=["data_prep*"]),
        *(f"dualscore.shipped.{folder}" for folder in SHIPPED),
    ],
    package_dir={"": "src", "data_prep": "data_prep"}
    | {f"dualscore.shipped.{folder}": folder for folder in SHIPPED},
    package_data={"dualscore": ["py.typed"], "dualscore.cluster": ["job.sh"]}
    | {f"dualscore.shipped.{folder}": ["*.yaml"] for folder in SHIPPED},
    include_package_data=False,
)
