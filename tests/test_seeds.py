"""Table 1 over training seeds: means, ranges and who leads, from results files."""

import json

from brainldm_core import seeds


def publish(folder, name, fids, likeness):
    results = {}
    for system, fid, alike in zip(seeds.SYSTEMS, fids, likeness, strict=True):
        results[f"fid_{system}"] = {"value": fid, "n": 64, "note": "offline"}
        results |= {f"{metric}_{system}": {"value": alike} for metric in ("ms_ssim", "four_g_r_ssim")}
    path = folder / name / "results" / seeds.RESULTS
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"results": results}))
    return folder / name


def test_means_ranges_and_leads(tmp_path):
    # lsgan, vaegan, ldm, autoencoder, real; real pairs are alike by 0.90, so 0.88 is nearer than 0.95
    one = publish(tmp_path, "tiny-atlas", (3, 4, 1, 0.5, 0.1), (0.95, 0.91, 0.88, 0.9, 0.9))
    two = publish(tmp_path, "tiny-atlas-seed2", (5, 1, 2, 0.5, 0.1), (0.95, 0.91, 0.88, 0.9, 0.9))
    alone = publish(tmp_path, "demo-atlas-seed1", (3, 4, 1, 0.5, 0.1), (0.9,) * 5)
    assert seeds.runs_by_settings([two, alone, one]) == {"tiny-atlas": [one, two]}
    text = seeds.over_seeds([one, two, alone])
    assert "| LSGAN | 4 (3 to 5) | 0.95 (0.95 to 0.95) | 0.95 (0.95 to 0.95) |" in text
    assert "nearer to real volumes than the LSGAN in 2 in FID, 2 in MS-SSIM, 2 in 4-G-R-SSIM." in text
    assert "nearer to real volumes than the VAE-GAN in 1 in FID, 0 in MS-SSIM, 0 in 4-G-R-SSIM." in text
    assert "with 2 training seeds" in text and "demo" not in text


def test_one_seed_is_no_table(tmp_path):
    one = publish(tmp_path, "tiny-atlas", (3, 4, 1, 0.5, 0.1), (0.9,) * 5)
    (tmp_path / "empty").mkdir()
    assert seeds.over_seeds([one, tmp_path / "empty"]) == ""
