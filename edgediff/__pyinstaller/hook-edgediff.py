"""Public names are imported at first use, where PyInstaller does not see it, and the built-in model
is data."""

from PyInstaller.utils.hooks import collect_data_files, collect_submodules

hiddenimports = collect_submodules("edgediff", filter=lambda name: "__pyinstaller" not in name)
datas = collect_data_files("edgediff")
