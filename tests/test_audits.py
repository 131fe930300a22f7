"""The audit of a run in two spaces finds copies of its own training scans; charts are drawn."""

import numpy as np
import pytest
from test_training import blob_run

from brainldm_core import audit_charts, audits, differences, features, sampling, training
from brainldm_core.dataset import load_cohort

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    run = blob_run(tmp_path_factory.mktemp("runs"))
    training.train_autoencoder(run, progress=False)
    training.train_diffusion(run, progress=False)
    pipeline, cohort = sampling.load_pipeline(run.folder, "cpu"), load_cohort(run.stage("cohort"))
    scans = [cohort.volumes(split)[:, 0].numpy() for split in ("train", "test")]
    return pipeline, cohort, scans, audits.spaces(run, pipeline, features.offline_extractor(), *scans)


def test_copies_are_traced_in_both_spaces(made):
    pipeline, cohort, (known, unseen), found = made
    who = audits.subjects(cohort)
    assert [len(names) for names in who.values()] == [len(known), len(unseen)]
    for space in found.values():
        assert np.allclose(space.embed(known), space.training, atol=1e-2 * np.abs(space.training).max())
    table, last = audits.planted(found, pipeline, known, who, {"decoded": None, "copy": {}}, count=3)
    assert (table.loc["copy", ["latents: traced", "features: traced"]] == 1).all() and (table["n"] == 3).all()
    assert all(row.n == 3 and row.ratios.max() < 0.5 for row in last.values())
    near = audits.nearest_scans(found["latents"], unseen, known, unseen)
    assert np.array_equal(near["nearest held out"], unseen) and len(near["nearest in training"]) == len(unseen)


def test_charts_are_drawn(made):
    _, cohort, (known, unseen), found = made
    ratios = {key: row.ratios for key, row in audits.audit_all(found, unseen, audits.subjects(cohort)).items()}
    assert audit_charts.distance_ratios({key: ({"samples": row}, 0.8) for key, row in ratios.items()}).axes
    power = np.abs(np.random.default_rng(0).normal(1, 0.1, (4, 6))) + 0.1
    assert len(audit_charts.spectra(np.arange(1, 7) / 10, {"real": power, "samples": power}).axes) == 2
    regions = [differences.regional_volumes(part, cohort.affine) for part in (known, unseen)]
    table = differences.compare_sets(*regions, {name: name for name in regions[0]})
    assert len(audit_charts.effects(table.replace([np.inf, -np.inf], 9).fillna(1)).axes[0].get_yticklabels()) == 12
