"""``brainldm evaluate``: numbers are those of the metrics, faults of sets are told, work goes on where it was."""

import csv
import itertools
import json
import re

import numpy as np
import pytest
from test_features import blobs
from test_nifti_sets import write

from brainldm_core import cli, evaluation, evaluation_work, features, nifti_sets, set_nulls
from brainldm_core.errors import BrainLDMError
from brainldm_core.evaluate_folders import Question, evaluate
from brainldm_core.metrics import kernel_distance
from brainldm_core.set_nulls import FAULTY


@pytest.fixture
def folders(tmp_path):
    """Generated and real volumes."""
    return {"samples": write(tmp_path / "made", blobs(9, 1)), "real": write(tmp_path / "real", blobs(16, 2))}


def quietly(question):
    return evaluate(question, say=lambda text: None)


def asked(folders, out, **more):
    plain = {"extractor": "offline", "pairs": 20, "draws": 10, "morphometry": False}
    return Question(folders["samples"], folders["real"], out, **(plain | more))


def test_rows_are_those_of_arrays(folders, tmp_path):
    found = quietly(asked(folders, tmp_path / "out"))
    real, samples = (nifti_sets.open_set(folders[name]) for name in ("real", "samples"))
    one, two, samples = map(nifti_sets.shuffled, (*nifti_sets.halves(real), samples))
    expected = evaluation.distribution_rows(
        one[:], two[:], {"samples": samples[:]}, features.offline_extractor(), pairs=20, draws=10
    )
    for row, known in zip(found.rows[:2], expected, strict=True):
        assert row.keys() == known.keys()
        for key, value in known.items():
            assert row[key] == (pytest.approx(value, rel=1e-6, abs=1e-12) if isinstance(value, float) else value), key
    everything = features.extract(features.offline_extractor(), np.concatenate([one[:], two[:]]))
    whole = evaluation.at_all(everything, features.extract(features.offline_extractor(), samples[:]), 10)
    assert found.all_volumes["fid"] == pytest.approx(whole["fid"], rel=1e-6)
    assert (found.all_volumes["n"], found.all_volumes["n_reference"]) == (9, 16)


def test_files_hold_what_was_found(folders, tmp_path, capsys):
    words = ["evaluate", str(folders["samples"]), "--against", str(folders["real"]), "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--pairs", "20", "--no-morphometry", "--extractor", "offline"]) == 0
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    with open(tmp_path / "out" / "table_1.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == [row["model"] for row in content["rows"]] == ["real", "samples", *FAULTY]
    for row, kept in zip(rows, content["rows"], strict=True):
        assert float(row["fid"]) == kept["fid"] and f"{kept['fid']:.3g}" in printed
        assert kept["extractor_sha256"] == features.offline_extractor().sha256
        assert "not comparable with the paper's FID" in kept["note"]
    assert set(content["not_measured"]) >= {"resampler", "reconstructions", "copies of training volumes"}
    assert content["record"]["extractor"]["name"] == "offline-1" and content["record"]["question"]["seed"] == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<figure>") == 4 and f"{content['rows'][1]['fid']:.3g}" in page
    assert not re.search(r"(src|href)=.?(?!.?data:)[a-z]+:", page), "nothing is asked of another host"


def test_pictures_of_real_volumes_can_be_left_out(folders, tmp_path):
    quietly(asked(folders, tmp_path / "out", pictures=False))
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<figure>") == 2 and "shows real scans" not in page


def test_known_faults_are_the_scale(folders, tmp_path):
    """Each fault shows where a reader looks for it, beside as many real volumes."""
    folders = {"samples": folders["samples"], "real": write(tmp_path / "more", blobs(60, 2))}
    real, _, blurred, noisy, few = quietly(asked(folders, tmp_path / "out", pairs=200)).rows
    assert blurred["fid"] > 2 * blurred["fid_floor"] and noisy["fid"] > noisy["fid_floor"]
    assert noisy["ms_ssim"] < real["ms_ssim"] < few["ms_ssim"] and few["recall"] < blurred["recall"] < noisy["recall"]
    samples = nifti_sets.open_set(folders["samples"])
    one = set_nulls.known_faults(samples)["real, noisy"]
    assert np.array_equal(one[:], one[:]), "the same noise each time"
    assert one.key != samples.key and "0x" not in repr(one.change), "kept work knows the fault by its name"


def test_names_from_files_are_escaped(tmp_path):
    evil = "<img src=x onerror=alert(1)>{}.nii.gz"
    folders = {"samples": write(tmp_path / "m", blobs(4, 1), evil), "real": write(tmp_path / "r", blobs(8), evil)}
    quietly(asked(folders, tmp_path / "out"))
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<img src=x" not in page and "&lt;img src=x" in page


def test_what_is_wrong_with_the_sets_is_told(tmp_path):
    real = blobs(16, 2)
    copied = np.concatenate([real[:5], real[:1], blobs(3, 9)])
    folders = {"samples": write(tmp_path / "m", copied), "real": write(tmp_path / "r", real)}
    found = quietly(asked(folders, tmp_path / "out"))
    said = " ".join(found.warnings)
    assert "samples: 1 of 9 volumes repeat another one voxel by voxel." in said
    counted = [int(number) for number in re.findall(r"samples: (\d) of 9 volumes are volumes of", said)]
    assert sum(counted) == 6, "five copies and a repeated one, some in either half"
    assert "read intervals, not values" in said
    dim = {"samples": write(tmp_path / "dim", 0.7 * blobs(9, 1)), "real": folders["real"]}
    assert "brightest grey of the head" in " ".join(quietly(asked(dim, tmp_path / "out2")).warnings)


def test_work_goes_on_where_it_stopped(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation_work, "CHUNK", 4)
    calls, stop = [], [3]

    def counted(extractor, volumes, *rest):
        if len(calls) == stop[0]:
            raise KeyboardInterrupt
        calls.append(len(volumes))
        return features.extract(extractor, volumes)

    monkeypatch.setattr(evaluation_work, "extract", counted)
    with pytest.raises(KeyboardInterrupt):
        quietly(asked(folders, tmp_path / "out"))
    stop[0] = 100
    found = quietly(asked(folders, tmp_path / "out"))
    assert max(calls) <= 4, "a set is read in chunks"
    assert sum(calls) == 8 + 8 + 9 + 8 + 8 + 4, "what was done is not done again; one person eight times is one chunk"
    before, again = len(calls), quietly(asked(folders, tmp_path / "out"))
    assert len(calls) == before and again.rows == found.rows
    write(folders["samples"], blobs(1, 50))  # another first volume
    assert quietly(asked(folders, tmp_path / "out")).rows != found.rows


def test_copies_of_training_volumes_are_found(tmp_path):
    training, real = blobs(40, 3), blobs(44, 4)
    folders = {"samples": write(tmp_path / "m", training[:10]), "real": write(tmp_path / "r", real)}
    write(tmp_path / "t", training, "sub-t{:03d}_T1w.nii.gz")
    found = quietly(asked(folders, tmp_path / "out", training=tmp_path / "t")).copies
    assert found["flagged"] == 1 and found["found"]["exact"] == 1 and found["threshold"] > 0
    assert "100% of the samples" in (tmp_path / "out" / "index.html").read_text()
    fresh = {"samples": write(tmp_path / "f", blobs(10, 77)), "real": folders["real"]}
    honest = quietly(asked(fresh, tmp_path / "out2", training=tmp_path / "t")).copies
    assert honest["flagged"] <= 0.3 and honest["share"] <= honest["innocent"][1]


def test_what_cannot_be_compared_is_refused(folders, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("do not touch")
    with pytest.raises(BrainLDMError, match="exists already"):
        quietly(asked(folders, taken))
    for option, words in (("other_real", "--other-real"), ("training", "--training")):
        with pytest.raises(BrainLDMError, match=f"is in --against and in {words}"):
            quietly(asked(folders, tmp_path / "out", **{option: folders["real"]}))
    small = {"samples": write(tmp_path / "s", [blobs(1)[0][:-1]]), "real": folders["real"]}
    with pytest.raises(BrainLDMError, match="15x20x16 voxels, not 16x20x16"):
        quietly(asked(small, tmp_path / "out"))
    with pytest.raises(BrainLDMError, match="no such file"):
        quietly(asked(folders, tmp_path / "out", extractor=str(tmp_path / "weights.pth")))
    for words in (["--pairs", "0"], ["--n", "1"]):
        assert cli.main(["evaluate", "a", "--against", "b", "--out", str(tmp_path / "x"), *words]) == 2


def test_other_people_make_the_floor(folders, tmp_path):
    other = write(tmp_path / "other", blobs(10, 8), "sub-o{:03d}_T1w.nii.gz")
    found = quietly(asked(folders, tmp_path / "out", other_real=other))
    assert [(row["n"], row["n_reference"]) for row in found.rows[:2]] == [(9, 16), (9, 16)]


@pytest.fixture(scope="module")
def simulated():
    """Simulated brains of 5 mm and their covariates."""
    from brainldm_core.covariates import draw_covariates
    from brainldm_core.profiles import load_profile
    from brainldm_core.simulate import simulate_requests

    table = draw_covariates(30, np.random.default_rng(3))
    volumes, table = simulate_requests(table, load_profile("tiny").grid, 3)
    return volumes, table, np.array(load_profile("tiny").grid.affine)


def table_of(folder, rows, prefix, split=None):
    rows = rows.reset_index(drop=True).copy()
    rows.insert(0, "participant_id", [f"sub-{prefix}{number:03d}" for number in range(len(rows))])
    if split:
        rows["split"] = split
    rows.to_csv(folder / "participants.tsv", sep="\t", index=False, na_rep="n/a")


def test_a_simulated_cohort_is_measured_and_asked_after(simulated, tmp_path):
    """Samples that are brains with other people's requests: the scorecard says that they are not followed."""
    volumes, table, affine = simulated
    folders = {"samples": tmp_path / "m", "real": tmp_path / "r"}
    write(folders["samples"], volumes[:10], "sub-m{:03d}_T1w.nii.gz", affine)
    table_of(folders["samples"], table.iloc[:10].sample(10, random_state=1), "m")
    write(folders["real"], volumes[10:], "sub-r{:03d}_T1w.nii.gz", affine)
    table_of(folders["real"], table.iloc[10:], "r", ["train"] * 10 + ["test"] * 10)
    question = asked(folders, tmp_path / "out", morphometry=True, weights="shipped")
    found = quietly(question)
    assert [row["model"] for row in found.rows] == [
        *("real", "samples", "resampler", "reconstructions", "Gaussian in the latent", *FAULTY)
    ]
    assert not set(found.not_measured) & {"resampler", "reconstructions", "anatomy and covariates"}
    r = {
        name: next(row["r"] for row in rows if row["quantity"] == "ventricles" and row["region"] == "all")
        for name, rows in found.scorecard.items()
    }
    assert r["reference"] > 0.98 > 0.75 > abs(r["samples"])
    assert len(found.regions) == 6 and {row["set"] for row in found.regions} == {"samples", "other real"}
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Requested against measured" in page and page.count("<figure>") == 5
    with open(tmp_path / "out" / "measured_samples.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10 and {"ventricular_volume_ml", "measured_lateral_ventricles_ml"} <= set(rows[0])


def test_without_a_table_the_scorecard_says_why(simulated, tmp_path):
    volumes, _, affine = simulated
    folders = {"samples": tmp_path / "m", "real": tmp_path / "r"}
    write(folders["samples"], volumes[:4], affine=affine)
    write(folders["real"], volumes[4:12], affine=affine)
    found = quietly(asked(folders, tmp_path / "out", morphometry=True))
    assert "no participants.tsv" in found.not_measured["requests"] and not found.scorecard and found.regions
    (folders["samples"] / "participants.tsv").write_text("participant_id\tage_years\nsub-000\told\n")
    assert (
        "'old' is not a number" in quietly(asked(folders, tmp_path / "o2", morphometry=True)).not_measured["requests"]
    )


def test_real_halves_are_nearer_than_simulated_brains(shared_data, simulated, tmp_path):
    """KID between halves of ten real scans, over all splits of the nine people, beside KID to simulated brains.

    A half has four or five scans, so single splits scatter: between halves KID is 0 on average and not in each split.
    """
    from brainldm_core.dataset import read_nifti
    from brainldm_core.profiles import load_profile
    from brainldm_core.scans import Job, prepare_scan

    sources = sorted((shared_data / "oasis").glob("sub-*/**/*T1w.nii.gz"))
    for source in sources:
        prepare_scan(Job(source, tmp_path / source.name, load_profile("tiny").grid))
    scans = np.clip([read_nifti(tmp_path / source.name)[0] for source in sources], 0, 1)
    real, made = (features.extract(features.offline_extractor(), part) for part in (scans, simulated[0]))
    people = np.array([nifti_sets.subject_of(source) for source in sources])
    names, rows = np.unique(people), []
    for chosen in itertools.combinations(names, len(names) // 2):
        half = np.isin(people, chosen)
        among = kernel_distance(real[half], real[~half])
        rows.append((among, kernel_distance(real[half], made), kernel_distance(real[~half], made)))
    among, one, other = np.array(rows).T
    assert len(rows) == 126 and (among < np.minimum(one, other)).mean() >= 0.9
    assert abs(among.mean()) < 0.15 * min(one.mean(), other.mean())
