"""Public names are imported at first use, where PyInstaller does not see it, and the built-in model
is data. The hub's client is left out, with the packages that it needs: an app that fetches bundles
adds it by --hidden-import huggingface_hub."""

from PyInstaller.utils.hooks import collect_data_files, collect_submodules

hiddenimports = collect_submodules("edgediff", filter=lambda name: "__pyinstaller" not in name)
excludedimports = ["huggingface_hub"]
datas = collect_data_files("edgediff")
