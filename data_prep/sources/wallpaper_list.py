"""The photographs that the boxed models learn from: where each lies, who took it, under which licence."""

from typing import NamedTuple


class Listed(NamedTuple):
    """A photograph, and the file of a package that it is."""

    name: str
    shipper: str  # Debian's package, or Python's
    path: str  # in the package
    sha256: str
    author: str
    licence: str  # as SPDX names it
    split: str


# fmt: off
WALLPAPERS = (
    Listed(
        "Aqua", "mate-backgrounds",
        "usr/share/backgrounds/mate/nature/Aqua.jpg",
        "5c30118205982da441bf7e6a1ada636a8a0be879408140b3148280c665ed6bce",
        "Charles Barbin", "GPL-2+", "train",
    ),
    Listed(
        "Blinds", "mate-backgrounds",
        "usr/share/backgrounds/mate/nature/Blinds.jpg",
        "f7aac0dcc2e06d0491643e84df3da1d9db7c4610f58806a880d56e074799f600",
        "Lennart Poettering, Andrea Cimitan", "GPL-2+", "train",
    ),
    Listed(
        "Dune", "mate-backgrounds",
        "usr/share/backgrounds/mate/nature/Dune.jpg",
        "8a67c2cb0be8c46b70c237311a4fa4d2b4ac7d39568135384787801fa5cc9a91",
        "Marco Cogoni, Hylke Bons", "GPL-2+", "train",
    ),
    Listed(
        "FreshFlower", "mate-backgrounds",
        "usr/share/backgrounds/mate/nature/FreshFlower.jpg",
        "972b0a0c4e5e3fa93f4f244fc84bc64b121a5eac3aaa5856f1308c1f38a02f8e",
        "Jens Ansorg", "GPL-2+", "train",
    ),
    Listed(
        "Garden", "mate-backgrounds",
        "usr/share/backgrounds/mate/nature/Garden.jpg",
        "d3095ee09d425ef23d27155412136cf14fc3c9af76ca58b452f55e23da324e78",
        "Charles Barbin", "GPL-2+", "val",
    ),
    Listed(
        "GreenMeadow", "mate-backgrounds",
        "usr/share/backgrounds/mate/nature/GreenMeadow.jpg",
        "8fa0de0aa4089f7319c9fb7a6d006d4cab6023e8c8853731557cff53567b4832",
        "Timothy Schellhase, Lapo Calamandrei", "GPL-2+", "train",
    ),
    Listed(
        "LadyBird", "mate-backgrounds",
        "usr/share/backgrounds/mate/nature/LadyBird.jpg",
        "e35a9a4126ef969c90b29c038058c5a575a20eadd84106a37bf1fa9931e7b61d",
        "Charles Barbin", "GPL-2+", "train",
    ),
    Listed(
        "RainDrops", "mate-backgrounds",
        "usr/share/backgrounds/mate/nature/RainDrops.jpg",
        "3e4ea9671c28c90a86cf67b3db9daf18c4741587c596333a7529ca589aaa0c16",
        "blackcombwhistler07", "GPL-2+", "train",
    ),
    Listed(
        "Storm", "mate-backgrounds",
        "usr/share/backgrounds/mate/nature/Storm.jpg",
        "77ca53077831d3237f73393a91fc879158abc046d852941c26e90de336356957",
        "Sergey Nazarov", "GPL-2+", "train",
    ),
    Listed(
        "TwoWings", "mate-backgrounds",
        "usr/share/backgrounds/mate/nature/TwoWings.jpg",
        "665e5abf8a5399070a91a9a8e455fe071e5b61697ff78fdeda4e9843ef545aeb",
        "Charles Barbin, Hylke Bons", "GPL-2+", "train",
    ),
    Listed(
        "Wood", "mate-backgrounds",
        "usr/share/backgrounds/mate/nature/Wood.jpg",
        "19c78500ac00a622e19907ab9cc7d06d46fe08c4a6142759a84195696150ec07",
        "Jean-François Fortin Tam", "GPL-2+", "train",
    ),
    Listed(
        "YellowFlower", "mate-backgrounds",
        "usr/share/backgrounds/mate/nature/YellowFlower.jpg",
        "254da96256acb7add685679775a04d1e4a5bc8cd13e5a5a3d61351ce198a5306",
        "Charles Barbin", "GPL-2+", "train",
    ),
    Listed(
        "aitzgorri_by_Aitzol_Berasategi", "lomiri-wallpapers-16.04",
        "usr/share/backgrounds/aitzgorri_by_Aitzol_Berasategi.jpg",
        "66268e7b48f8854d36a28765fac6e23ec1aee251daa6da1f64715f201020ad36",
        "Aitzol Berasategi", "CC-BY-4.0", "train",
    ),
    Listed(
        "Bridge_by_Sander_Klootwijk", "lomiri-wallpapers-16.04",
        "usr/share/backgrounds/Bridge_by_Sander_Klootwijk.jpg",
        "bd86b081f9975e2b83527f71e49b9271a8ab40885428395969d9f7d834d7f050",
        "Sander Klootwijk", "CC-BY-SA-4.0", "train",
    ),
    Listed(
        "Dragonfly_by_Bolly", "lomiri-wallpapers-16.04",
        "usr/share/backgrounds/Dragonfly_by_Bolly.jpg",
        "af5af17841009732def24b09bb1e669a1b09d2b4bdeee7812c371101c30d2bb3",
        "Bolly", "CC-BY-SA-4.0", "val",
    ),
    Listed(
        "free_by_Peter_Nerlich", "lomiri-wallpapers-16.04",
        "usr/share/backgrounds/free_by_Peter_Nerlich.jpg",
        "85a5453c2fed514c75973016f3d862aca62eb7ca087618822469274ac1092373",
        "Peter Nerlich", "CC-BY-SA-4.0", "train",
    ),
    Listed(
        "friends_by_Aitzol_Berasategi", "lomiri-wallpapers-16.04",
        "usr/share/backgrounds/friends_by_Aitzol_Berasategi.jpg",
        "cc40e313c74e421edffe3403def413c16878ce14661cce7ec5915baeab35538d",
        "Aitzol Berasategi", "CC-BY-4.0", "train",
    ),
    Listed(
        "greentock_by_Peter_Nerlich", "lomiri-wallpapers-16.04",
        "usr/share/backgrounds/greentock_by_Peter_Nerlich.jpg",
        "e7b20e2db9dcd6e2b278ca55873c2110b35d89cd38b04d0b18728726888e6889",
        "Peter Nerlich", "CC-BY-SA-4.0", "train",
    ),
    Listed(
        "life_by_Aitzol_Berasategi", "lomiri-wallpapers-16.04",
        "usr/share/backgrounds/life_by_Aitzol_Berasategi.jpg",
        "4c119350ead80201fe256850c3d316309ddfb4bdf10b235ce982dcde0c667c05",
        "Aitzol Berasategi", "CC-BY-4.0", "train",
    ),
    Listed(
        "picosdeeuropa_by_Aitzol_Berasategi", "lomiri-wallpapers-16.04",
        "usr/share/backgrounds/picosdeeuropa_by_Aitzol_Berasategi.jpg",
        "414d0072b2f6f2c555deafeaef6e45c4fed6fa9ad26eba6560ca8803959cf97a",
        "Aitzol Berasategi", "CC-BY-4.0", "val",
    ),
    Listed(
        "Picture_0B_by_freespace", "lomiri-wallpapers-16.04",
        "usr/share/backgrounds/Picture_0B_by_freespace.jpg",
        "c8c0ab18e48d9e0419fe42881112137f3afafc27dfddc29ec3a6d54c56d225ad",
        "Trevor \"Freespace\"", "CC-BY-4.0", "train",
    ),
    Listed(
        "Picture_1A_by_freespace", "lomiri-wallpapers-16.04",
        "usr/share/backgrounds/Picture_1A_by_freespace.jpg",
        "89e86af38d04daaef975665dc2127e9fa76f0fd68f4eea105a2d0ae3390b010b",
        "Trevor \"Freespace\"", "CC-BY-4.0", "train",
    ),
    Listed(
        "seeding_by_Clements_Engelhardt", "lomiri-wallpapers-16.04",
        "usr/share/backgrounds/seeding_by_Clements_Engelhardt.jpg",
        "a5634d1ab5e41a3568e92d4a894a500c92b891f9ff734e50bd224d6e185a605f",
        "Clemens Engelhardt", "CC0-1.0", "train",
    ),
    Listed(
        "sunset_by_Aitzol_Berasategi", "lomiri-wallpapers-16.04",
        "usr/share/backgrounds/sunset_by_Aitzol_Berasategi.jpg",
        "474dab6a4b9f94dc76c29dfe30e9f5db4af0fd2e33fe5d695f8152b371efca18",
        "Aitzol Berasategi", "CC-BY-4.0", "train",
    ),
    Listed(
        "Wine_by_Jakkub_Mede", "lomiri-wallpapers-16.04",
        "usr/share/backgrounds/Wine_by_Jakkub_Mede.jpg",
        "d2e96e6d4da40dd804b3d0ce295e94de04a2d7d9b6785d42cd9d92ba58bced74",
        "Jakub Mede", "CC-BY-4.0", "train",
    ),
    Listed(
        "Kleiber_by_Lukas_Baubkus", "lomiri-wallpapers-20.04",
        "usr/share/backgrounds/Kleiber_by_Lukas_Baubkus.jpg",
        "6572410c09f4492c74ccadde133565a14c0161617d5917d4c820c66d65a44ba7",
        "Lukas Baubkus", "CC-BY-SA-3.0", "train",
    ),
    Listed(
        "BytheWater", "plasma-workspace-wallpapers",
        "usr/share/wallpapers/BytheWater/contents/images/2560x1600.jpg",
        "c272434ef39f2abf1ed48a15a8910088020f3165329a5092f3940ec9464bc05f",
        "Maciej Wiklo", "LGPL-3", "train",
    ),
    Listed(
        "ColorfulCups", "plasma-workspace-wallpapers",
        "usr/share/wallpapers/ColorfulCups/contents/images/2560x1600.jpg",
        "6e0f3a72feb5a4a9fec191b77e34874c3c69e2d93040deb3f07773e73385023d",
        "Dmitri Popov", "LGPL-3", "train",
    ),
    Listed(
        "DarkestHour", "plasma-workspace-wallpapers",
        "usr/share/wallpapers/DarkestHour/contents/images/2560x1600.jpg",
        "8e3703fae3a3c217b1fc2b399b706cd3720584268d071ba153e4809daa55f1ce",
        "Risto Saukonpää", "LGPL-3", "train",
    ),
    Listed(
        "EveningGlow", "plasma-workspace-wallpapers",
        "usr/share/wallpapers/EveningGlow/contents/images/2560x1600.jpg",
        "586682dcb362b9f620068f10138f87d0d3649939aef238adc5807cb951976a7a",
        "Ian Hex", "LGPL-3", "val",
    ),
    Listed(
        "FallenLeaf", "plasma-workspace-wallpapers",
        "usr/share/wallpapers/FallenLeaf/contents/images/2560x1600.jpg",
        "95603a6560c7e8d50e0e03b3f4adbe39c5258c72528e74e4ecaea1daf4e499de",
        "Martin Klapetek", "LGPL-3", "train",
    ),
    Listed(
        "Kite", "plasma-workspace-wallpapers",
        "usr/share/wallpapers/Kite/contents/images/2560x1600.jpg",
        "bdca288ce296a981e80659c021cf707caddc702c0c8d4247e60bd618476d47f8",
        "Risto Saukonpää", "LGPL-3", "train",
    ),
    Listed(
        "OneStandsOut", "plasma-workspace-wallpapers",
        "usr/share/wallpapers/OneStandsOut/contents/images/2560x1600.jpg",
        "cb507baf1dafdcae362264f3aba9483ed4be5f6c9fdd770f0ec0920c6d9e80fd",
        "Risto Saukonpää", "LGPL-3", "train",
    ),
    Listed(
        "Path", "plasma-workspace-wallpapers",
        "usr/share/wallpapers/Path/contents/images/2560x1600.jpg",
        "7477457d7f17b736259f1b021864778ad4ba802cf3214e6728181ff29126bba8",
        "Risto Saukonpää", "LGPL-3", "train",
    ),
    Listed(
        "summer_1am", "plasma-workspace-wallpapers",
        "usr/share/wallpapers/summer_1am/contents/images/2560x1600.jpg",
        "c868b50789591dd42910153c768053f1ba0a98cb36bbfc2b7a96a1045d0477f8",
        "Risto Saukonpää", "LGPL-3", "train",
    ),
)
WHEELS = (
    Listed(
        "astronaut", "skimage",
        "data/astronaut.png",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        "NASA", "public domain", "train",
    ),
    Listed(
        "coffee", "skimage",
        "data/coffee.png",
        "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        "Rachel Michetti", "CC0-1.0", "train",
    ),
    Listed(
        "chelsea", "skimage",
        "data/chelsea.png",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        "Stéfan van der Walt", "CC0-1.0", "val",
    ),
    Listed(
        "rocket", "skimage",
        "data/rocket.jpg",
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
        "SpaceX", "CC0-1.0", "train",
    ),
    Listed(
        "china", "sklearn",
        "datasets/images/china.jpg",
        "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
        "danielbuechele", "CC-BY-2.0", "train",
    ),
    Listed(
        "flower", "sklearn",
        "datasets/images/flower.jpg",
        "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
        "vultilion", "CC-BY-2.0", "val",
    ),
)
# fmt: on
PACKAGES = tuple(dict.fromkeys(listed.shipper for listed in WALLPAPERS))
