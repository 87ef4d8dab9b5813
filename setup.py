"""Maps each package to the folder that holds it; everything else stands in pyproject.toml."""

from setuptools import find_packages, setup

FOLDERS = {
    "sana_runtime": "runtime",
    "sana_reference": "reference",
    "sana_plugins": "plugins",
    "sana_calibration": "calibration",
    "sana_export": ".",
}

setup(
    packages=[
        package for name, folder in FOLDERS.items() for package in find_packages(folder, include=[name, f"{name}.*"])
    ],
    package_dir={name: f"{folder}/{name}" for name, folder in FOLDERS.items()},
)
