"""Run folders: what they were made with, and what may change afterwards."""

import pytest

from brainldm_core.errors import BrainLDMError
from brainldm_core.profiles import Profile, load_profile
from brainldm_core.records import open_run


def changed(**parts) -> Profile:
    return Profile.model_validate(load_profile("smoke").settings() | parts)


def test_a_run_is_refused_other_settings_but_not_other_expectations(tmp_path):
    open_run("smoke", "atlas", 0, tmp_path)
    expecting = changed(expected={"samples_brain_r": {"value": 0.8, "source": "this run"}})
    assert open_run(expecting, "atlas", 0, tmp_path).profile.expected["samples_brain_r"].value == 0.8
    with pytest.raises(BrainLDMError, match="other settings"):
        open_run(changed(release={"volumes": 3, "steps": 2, "shards": 1}), "atlas", 0, tmp_path)
