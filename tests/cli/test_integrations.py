from toxloc.integrations.folders import FOLDERS

from .conftest import invoke, plain


def test_the_folder_is_printed_alone_for_use_in_a_command():
    for name, folder in FOLDERS.items():
        assert invoke("integrations", name).stdout == f"{folder}\n"


def test_all_folders_are_listed():
    text = plain(invoke("integrations", columns=250).output)
    assert all(f"{name} {folder}" in text for name, folder in FOLDERS.items())


def test_an_unknown_name_is_refused(refused):
    assert "no folder for 'helm'; choose one of lm-eval, evaluate" in refused("integrations", "helm")
