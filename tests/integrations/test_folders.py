from toxloc.integrations.folders import FOLDERS


def test_the_folders_have_what_the_tools_look_for():
    assert sorted(path.stem for path in FOLDERS["lm-eval"].glob("*.yaml")) == [
        "toxloc_rtp",
        "toxloc_rtp_challenging",
        "toxloc_rtp_greedy",
    ]
    folder = FOLDERS["evaluate"]
    assert (folder / f"{folder.name}.py").is_file()  # evaluate.load looks for a script with the name of the folder
