"""Metrics against naive loops, closed forms, other implementations and the check values on real scans."""

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brainldm_core import metrics, similarity
from brainldm_core.errors import BrainLDMError


def volumes(n=2, shape=(16, 20, 16), seed=0, smooth=True):
    """Random volumes with structure and an empty border, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, *shape, generator=generator)
    if smooth:
        x = torch.nn.functional.avg_pool3d(x, 3, 1, 1)
    x[..., :3] = 0
    return x / x.amax((1, 2, 3, 4), keepdim=True)


def gaussians(n, m, width, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(width, width))
    return rng.normal(size=(n, width)) @ mix, rng.normal(size=(m, width)) + 0.3


# Distances of features


@pytest.mark.parametrize(("n", "m", "width"), [(200, 150, 6), (8, 12, 30), (5, 90, 20), (90, 5, 20)])
def test_frechet_distance_is_that_of_the_matrix_square_root(n, m, width):
    a, b = gaussians(n, m, width)
    one, two = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # Eigenvalues of the product: its square root itself is ill-conditioned where there are few rows.
    roots = np.sqrt(np.clip(np.linalg.eigvals(one @ two).real, 0, None))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + two) - 2 * roots.sum()
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)
    if min(n, m) > width:
        root = scipy.linalg.sqrtm(one @ two).real
        expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + two - 2 * root)
        assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert metrics.frechet_distance(a, b) == pytest.approx(metrics.frechet_distance(b, a))


def test_frechet_distance_of_gaussians_in_closed_form():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T  # exactly N(0, 1)
    shift, scales = np.array([1.0, -2, 0.5, 0]), np.array([1.0, 2, 3, 0.5])
    # |m|^2 + sum (1 - s)^2 for covariances that commute.
    assert metrics.frechet_distance(x, x * scales + shift) == pytest.approx(5.25 + 0 + 1 + 4 + 0.25)
    assert metrics.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert metrics.frechet_distance(torch.from_numpy(x), x + 1) == pytest.approx(4)


def test_kernel_distance_by_loops_and_without_bias():
    a, b = gaussians(7, 5, 3)

    def kernel(x, y):
        return (sum(x * y) / 3 + 1) ** 3

    aa = np.mean([kernel(a[i], a[j]) for i, j in itertools.permutations(range(7), 2)])
    bb = np.mean([kernel(b[i], b[j]) for i, j in itertools.permutations(range(5), 2)])
    ab = np.mean([kernel(x, y) for x in a for y in b])
    assert metrics.kernel_distance(a, b) == pytest.approx(aa + bb - 2 * ab)
    rng = np.random.default_rng(1)
    null = [metrics.kernel_distance(rng.normal(size=(6, 4)), rng.normal(size=(9, 4))) for _ in range(600)]
    assert abs(np.mean(null)) < 4 * np.std(null) / np.sqrt(600) and min(null) < 0


def test_prdc_by_loops():
    real, fake = gaussians(12, 9, 2, seed=3)
    k = 3

    def radius(points, i):
        return sorted(np.linalg.norm(points[i] - other) for j, other in enumerate(points) if j != i)[k - 1]

    inside = [[np.linalg.norm(r - f) < radius(real, i) for f in fake] for i, r in enumerate(real)]
    back = [[np.linalg.norm(r - f) < radius(fake, j) for j, f in enumerate(fake)] for r in real]
    expected = {
        "precision": np.mean([any(row[j] for row in inside) for j in range(9)]),
        "recall": np.mean([any(row) for row in back]),
        "density": sum(map(sum, inside)) / (k * 9),
        "coverage": np.mean([any(row) for row in inside]),
    }
    assert metrics.prdc(real, fake, k) == pytest.approx(expected)
    assert 0 < expected["precision"] < 1 or 0 < expected["recall"] < 1


def test_prdc_of_cases_known_beforehand():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(40, 3))
    assert metrics.prdc(real, real, 5) == {"precision": 1, "recall": 1, "density": 1, "coverage": 1}
    far = metrics.prdc(real, real + 100, 5)
    assert set(far.values()) == {0}
    collapsed = metrics.prdc(real, real[:1] + 1e-6 * rng.normal(size=(40, 3)), 5)
    assert collapsed["precision"] == 1 and collapsed["recall"] <= 1 / 40 and collapsed["coverage"] < 0.5


def test_features_that_do_not_fit_are_refused():
    a = np.zeros((5, 3))
    for bad in (np.zeros((5, 4)), np.zeros(5), a[:1], np.full((5, 3), np.nan)):
        for metric in (metrics.frechet_distance, metrics.kernel_distance, metrics.prdc):
            with pytest.raises(BrainLDMError, match="features"):
                metric(a, bad)
    for k in (0, 5):
        with pytest.raises(BrainLDMError, match="smaller k"):
            metrics.prdc(a, a, k)


# MS-SSIM


def window():
    line = np.exp(-(np.arange(-3, 4) ** 2) / (2 * 1.5**2))
    cube = line[:, None, None] * line[None, :, None] * line[None, None, :]
    return cube / cube.sum()


def local(x, y=None):
    """Weighted mean of x (times y) in every window, by loops."""
    values, weights = x if y is None else x * y, window()
    found = np.empty([side - 6 for side in x.shape])
    for place in np.ndindex(found.shape):
        found[place] = (weights * values[tuple(slice(p, p + 7) for p in place)]).sum()
    return found


def test_single_scale_ssim_by_loops():
    x, y = volumes(2, (9, 10, 8)).double()[:, 0].numpy()
    mx, my = local(x), local(y)
    vx, vy, cov = local(x, x) - mx**2, local(y, y) - my**2, local(x, y) - mx * my
    expected = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    found = metrics.ms_ssim(torch.from_numpy(x)[None, None], torch.from_numpy(y)[None, None], scales=1)
    assert found.item() == pytest.approx(expected.mean(), abs=1e-9)


def test_ms_ssim_as_another_implementation():
    from monai.metrics import MultiScaleSSIMMetric

    x, y = volumes(3, (30, 34, 28)), volumes(3, (30, 34, 28), seed=1)
    y = 0.7 * x + 0.3 * y
    weights = np.array(similarity.SCALE_WEIGHTS[:2])
    other = MultiScaleSSIMMetric(3, kernel_size=7, kernel_sigma=1.5, weights=tuple(weights / weights.sum()))
    assert torch.allclose(metrics.ms_ssim(x, y, 2), other(x, y)[:, 0], atol=2e-5)


@pytest.mark.parametrize(
    ("shape", "scales"),
    [((160, 224, 160), 5), ((80, 112, 80), 4), ((32, 40, 32), 3), ((16, 20, 16), 2), ((28, 13, 28), 1), ((6, 9, 9), 0)],
)
def test_number_of_scales_is_what_every_side_allows(shape, scales):
    assert metrics.ms_ssim_scales(shape) == scales
    side = min(shape)
    assert sum(side // 2**scale >= 7 for scale in range(5)) == scales


@given(st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_identity_symmetry_and_range(seed):
    x, y = volumes(2, seed=seed, smooth=False).split(1)
    for metric in (metrics.ms_ssim, metrics.four_g_r_ssim):
        assert metric(x, x).item() == pytest.approx(1, abs=1e-4)
        assert 0 <= metric(x, y).item() < 1
        together = metric(torch.cat([x, y]), torch.cat([y, y]))
        assert together.tolist() == pytest.approx([metric(x, y).item(), 1], abs=1e-4)
    assert metrics.ms_ssim(x, y).item() == pytest.approx(metrics.ms_ssim(y, x).item(), abs=1e-6)


def test_similarity_falls_with_noise_and_opposite_images_have_none():
    x = volumes(1)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    for metric in (metrics.ms_ssim, metrics.four_g_r_ssim):
        values = [metric(x, x.lerp(noise, part)).item() for part in (0, 0.1, 0.3, 0.6, 1)]
        assert values == sorted(values, reverse=True)
    assert metrics.ms_ssim(x, 1 - x).item() == 0  # negative structure, not NaN of its power


# 4-G-R-SSIM


def four_g_r_by_loops(x, y, r_rule):
    plane = np.array([[1, 1, 1], [1, 2, 1], [1, 1, 1]]) / 20
    kernel = np.stack([-plane, 0 * plane, plane])

    def gradient(v):
        found = np.zeros([side - 2 for side in v.shape])
        for place in np.ndindex(found.shape):
            cube = v[tuple(slice(p, p + 3) for p in place)]
            found[place] = sum(abs((np.moveaxis(kernel, 0, axis) * cube).sum()) for axis in range(3))
        return found

    gx, gy = gradient(x), gradient(y)
    mx, my = (local(v)[1:-1, 1:-1, 1:-1] for v in (x, y))
    fx, fy, qx, qy, qxy = local(gx), local(gy), local(gx, gx), local(gy, gy), local(gx, gy)
    score, counts = np.zeros(4), np.zeros(4)
    t1, t2 = 0.12 * gx.max(), 0.06 * gx.max()
    for place in np.ndindex(fx.shape):
        a, b = fx[place], fy[place]
        vx, vy = qx[place] - a**2, qy[place] - b**2
        sx, sy = (max(0, v + 1e-5 * (q + m**2) / 2) ** 0.5 for v, q, m in ((vx, qx[place], a), (vy, qy[place], b)))
        luminance = (2 * mx[place] * my[place] + 1e-4) / (mx[place] ** 2 + my[place] ** 2 + 1e-4)
        contrast = (2 * sx * sy + 9e-4) / (vx + vy + 9e-4)
        structure = (qxy[place] - a * b + 4.5e-4) / (sx * sy + 4.5e-4)
        if r_rule and (sx == 0 or sy == 0):
            structure = float(sx == sy)
        one, two = (g[tuple(p + 3 for p in place)] for g in (gx, gy))
        if one > t1 and two > t1:
            region = 0
        elif one > t1 or two > t1:
            region = 1
        else:
            region = 2 if one < t2 else 3
        score[region] += luminance * contrast * structure
        counts[region] += 1
    present = counts > 0
    return max(0, (score[present] / (counts[present] + 1e-5)).mean()), counts


@pytest.mark.parametrize("r_rule", [True, False])
def test_four_g_r_ssim_by_loops(r_rule):
    x, y = volumes(2, (13, 14, 24)).double()[:, 0].numpy()
    y = 0.6 * x + 0.4 * y
    x[..., :16] = 0  # empty in one, and near the border in both
    x[..., 16:] **= 3
    expected, counts = four_g_r_by_loops(x, y, r_rule)
    found = metrics.four_g_r_ssim(torch.from_numpy(x)[None, None], torch.from_numpy(y)[None, None], r_rule)
    assert (counts > 0).sum() >= 3 and found.item() == pytest.approx(expected, abs=1e-9)
    assert four_g_r_by_loops(x, y, not r_rule)[0] != pytest.approx(expected, abs=1e-6)  # the rule has something to do
    # An edge of the reference that the other lacks is changed, not preserved: the order matters.
    swapped, _ = four_g_r_by_loops(y, x, r_rule)
    found = metrics.four_g_r_ssim(torch.from_numpy(y)[None, None], torch.from_numpy(x)[None, None], r_rule)
    assert found.item() == pytest.approx(swapped, abs=1e-9) and swapped != pytest.approx(expected, abs=1e-3)


def test_r_rule_in_cases_made_by_hand():
    empty, full, x = torch.zeros(1, 1, 16, 16, 16), torch.ones(1, 1, 16, 16, 16), volumes(1, (16, 16, 16))
    half = x.clone()
    half[..., :12] = 0
    for rule in (True, False):
        assert metrics.four_g_r_ssim(empty, empty, rule).item() == pytest.approx(1, abs=1e-4)
        # Two constants differ in luminance only: C1 / (1 + C1).
        assert metrics.four_g_r_ssim(empty, full, rule).item() == pytest.approx(1e-4 / 1.0001, rel=1e-3)
    # Where one gradient alone vanishes structure is 0 with the rule and 1 without.
    assert metrics.four_g_r_ssim(half, x).item() < metrics.four_g_r_ssim(half, x, r_rule=False).item()
    textured = 0.4 + 0.2 * volumes(1, (16, 16, 22), smooth=False)[..., 6:]
    assert metrics.four_g_r_ssim(full * 0.5, textured).item() == 0
    assert metrics.four_g_r_ssim(full * 0.5, textured, r_rule=False).item() > 0.01


# Check values


def real_scan(folder, person):
    """Reoriented to RAS, centred in 160 x 224 x 160, scaled to [0, 1], rounded to 1/255."""
    import nibabel as nib

    path = folder / "oasis" / person / "ses-01" / "anat" / f"{person}_ses-01_T1w.nii.gz"
    x = np.squeeze(nib.as_closest_canonical(nib.load(path)).get_fdata(dtype=np.float32))
    for axis, side in enumerate((160, 224, 160)):
        spare = side - x.shape[axis]
        if spare >= 0:
            pad = [(0, 0)] * 3
            pad[axis] = (spare // 2, spare - spare // 2)
            x = np.pad(x, pad)
        else:
            x = np.take(x, range(-spare // 2, -spare // 2 + side), axis)
    x = np.round((x - x.min()) / (x.max() - x.min()) * 255) / 255
    return torch.from_numpy(x.astype(np.float32))[None, None]


def test_check_values_on_real_scans(shared_data):
    x, y = (real_scan(shared_data, person) for person in ("sub-OAS10282", "sub-OAS10456"))
    for first, second, with_rule, without in ((x, y, 0.37255, 0.38597), (y, x, 0.36730, 0.38088)):
        assert metrics.four_g_r_ssim(first, second).item() == pytest.approx(with_rule, abs=1e-3)
        assert metrics.four_g_r_ssim(first, second, r_rule=False).item() == pytest.approx(without, abs=1e-3)
    assert metrics.ms_ssim(x, y).item() == pytest.approx(0.68975, abs=1e-3)


def test_volumes_that_do_not_fit_are_refused():
    x = volumes(1)
    for metric in (metrics.ms_ssim, metrics.four_g_r_ssim):
        for bad in (x[0], x.expand(-1, 2, -1, -1, -1), x * 1.01, x - 0.01, x * float("nan"), (x * 255).byte()):
            with pytest.raises(BrainLDMError, match="volumes"):
                metric(bad, bad)
        with pytest.raises(BrainLDMError, match="of one shape"):
            metric(x, x[..., 1:])
        with pytest.raises(BrainLDMError, match="finer grid"):
            metric(x[..., :6], x[..., :6])
    with pytest.raises(BrainLDMError, match="finer grid"):
        metrics.four_g_r_ssim(x[..., :8], x[..., :8])
    for scales in (0, 3):
        with pytest.raises(BrainLDMError, match="allows 1 to 2"):
            metrics.ms_ssim(x, x, scales)


# Means over pairs


@given(st.integers(2, 40), st.integers(1, 900), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_pairs_are_of_different_volumes_and_none_comes_twice(n, pairs, seed):
    rows = metrics.draw_pairs(n, pairs, seed)
    assert len(rows) == min(pairs, n * (n - 1) // 2)
    assert rows.min() >= 0 and rows.max() < n and (rows[:, 0] != rows[:, 1]).all()
    assert len({frozenset(row) for row in rows.tolist()}) == len(rows)
    assert (rows == metrics.draw_pairs(n, pairs, seed)).all()


def test_pairs_of_very_many_volumes_are_drawn_evenly():
    rows = metrics.draw_pairs(100_000, 4000)
    assert len(rows) == 4000 and (rows[:, 0] != rows[:, 1]).all()
    assert np.abs(rows.mean(0) - 50_000).max() < 4 * 28_868 / np.sqrt(4000)


@pytest.mark.parametrize("metric", [metrics.ms_ssim, metrics.four_g_r_ssim])
def test_mean_over_pairs_is_that_of_single_calls(metric, monkeypatch):
    x = volumes(7)
    rows = metrics.draw_pairs(7, 12, seed=4)
    expected = np.mean([metric(x[i : i + 1], x[j : j + 1]).item() for i, j in rows])
    found = metrics.pair_mean(metric, x, pairs=12, seed=4)
    assert found.value == pytest.approx(expected, abs=1e-6) and (found.pairs, found.n) == (12, 7)
    assert found.low < found.value < found.high
    plain = metrics.pair_mean(lambda a, b: metric(a, b), x, pairs=12, seed=4)  # nothing shared between pairs
    monkeypatch.setattr(similarity, "CACHE_BYTES", 0)
    monkeypatch.setattr(similarity, "BATCH_VOXELS", 2 * 16 * 20 * 16)
    for other in (plain, metrics.pair_mean(metric, x, pairs=12, seed=4)):
        assert (other.value, other.error) == pytest.approx((found.value, found.error), abs=1e-6)


def test_error_of_a_mean_over_pairs_is_that_of_the_volumes():
    # For a metric f(x) + f(y) the mean over all pairs is twice the mean of f: its error is known.
    level = np.random.default_rng(0).uniform(size=30).astype(np.float32)
    x = torch.from_numpy(level)[:, None, None, None, None].expand(-1, 1, 7, 7, 7)
    found = metrics.pair_mean(lambda a, b: a[:, 0, 0, 0, 0] + b[:, 0, 0, 0, 0], x, pairs=435)
    assert found.value == pytest.approx(2 * level.mean(), rel=1e-6)
    assert found.error == pytest.approx(2 * level.std(ddof=1) / np.sqrt(30), rel=1e-6)
    assert found.high - found.value == pytest.approx(2.0452 * found.error, rel=1e-4)  # Student's t, 29 degrees


def test_few_volumes_have_a_mean_without_an_interval():
    found = metrics.pair_mean(metrics.ms_ssim, volumes(2))
    assert found.pairs == 1 and np.isnan([found.error, found.low, found.high]).all()
    for n, pairs in ((1, 10), (3, 0)):
        with pytest.raises(BrainLDMError, match="pair"):
            metrics.pair_mean(metrics.ms_ssim, volumes(n), pairs)
