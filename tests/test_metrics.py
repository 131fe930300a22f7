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


@pytest.mark.parametrize(("n", "m"), [(300, 200), (9, 300), (7, 7)])
def test_frechet_distance_as_another_implementation(n, m):
    from monai.metrics import FIDMetric

    a, b = gaussians(n, m, 6)
    expected = FIDMetric()(torch.from_numpy(a), torch.from_numpy(b)).item()
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


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


def test_discrepancies_as_other_implementations():
    from monai.metrics import MMDMetric
    from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel

    a, b = gaussians(23, 31, 5)
    tables = ((a, a), (b, b), (a, b))

    def discrepancy(aa, bb, ab, less):
        within = [(table.sum() - less * np.trace(table)) / (len(table) * (len(table) - less)) for table in (aa, bb)]
        return sum(within) - 2 * ab.mean()

    for less in (0, 1):
        radial = discrepancy(*(rbf_kernel(x, y, gamma=1 / (2 * 1.7**2)) for x, y in tables), less)
        assert metrics.mmd(a, b, 1.7, unbiased=bool(less)) == pytest.approx(radial, rel=1e-9)
    cubic = discrepancy(*(polynomial_kernel(x, y, degree=3, gamma=1 / 5, coef0=1) for x, y in tables), 1)
    assert metrics.kernel_distance(a, b) == pytest.approx(cubic, rel=1e-9)
    linear = MMDMetric()(*(torch.from_numpy(table)[:, None, :, None] for table in (a, b[:23]))).item()
    assert metrics.mmd(a, b[:23], kernel="linear") == pytest.approx(linear, rel=1e-9)
    assert metrics.mmd(a, b, kernel="linear", unbiased=False) == pytest.approx(((a.mean(0) - b.mean(0)) ** 2).sum())


def test_mmd_of_gaussians_in_closed_form():
    """For two Gaussians the mean of the kernel is an integral that is known: a Gaussian of the sum of covariances."""
    width, rng = 3, np.random.default_rng(0)
    means, deviations, bandwidth = (np.zeros(width), np.array([0.6, -0.3, 0])), (1.0, np.array([1.4, 0.7, 1])), 1.3
    between = {}
    for i in range(2):
        for j in range(2):
            spread = deviations[i] ** 2 + deviations[j] ** 2 * np.ones(width)
            exponent = -((means[i] - means[j]) ** 2 / (2 * (spread + bandwidth**2))).sum()
            between[i, j] = np.prod(bandwidth / np.sqrt(spread + bandwidth**2)) * np.exp(exponent)
    expected = between[0, 0] + between[1, 1] - 2 * between[0, 1]

    def draw(n, which):
        return means[which] + deviations[which] * rng.normal(size=(n, width))

    found = [metrics.mmd(draw(60, 0), draw(45, 1), bandwidth) for _ in range(400)]
    assert abs(np.mean(found) - expected) < 4 * np.std(found) / np.sqrt(400) and np.std(found) < 20 * expected
    null = [metrics.mmd(draw(60, 0), draw(45, 0), bandwidth) for _ in range(400)]
    assert abs(np.mean(null)) < 4 * np.std(null) / np.sqrt(400) and min(null) < 0
    biased = np.mean([metrics.mmd(draw(60, 0), draw(45, 0), bandwidth, unbiased=False) for _ in range(50)])
    assert biased == pytest.approx((1 - between[0, 0]) * (1 / 60 + 1 / 45), rel=0.1)  # what its name says


def test_mmd_of_equal_sets():
    a, _ = gaussians(40, 2, 5)
    for kernel in ("rbf", "linear"):
        assert metrics.mmd(a, a, kernel=kernel, unbiased=False) == pytest.approx(0, abs=1e-9)
    table = np.exp(-((a[:, None] - a[None]) ** 2).sum(-1) / (2 * 2.5**2))
    others = (table.sum() - 40) / (40 * 39)
    # Each row is its own double in the other set, which the unbiased estimate counts: -2 (1 - mean of the others) / n.
    assert metrics.mmd(a, a, 2.5) == pytest.approx(-2 * (1 - others) / 40, rel=1e-9)
    few = np.repeat(a[:2], 20, 0)  # of rank 1
    assert np.isfinite(metrics.mmd(a, few)) and metrics.mmd(few, few, unbiased=False) == pytest.approx(0, abs=1e-9)
    assert metrics.mmd(a, few, 2.5) > 0.1


def test_bandwidth_is_the_median_distance(monkeypatch):
    a, b = gaussians(30, 20, 4)
    rows = np.concatenate([a, b])
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=-1)[np.triu_indices(50, 1)]
    assert metrics.median_bandwidth(a, b) == pytest.approx(np.median(distances))
    assert metrics.mmd(a, b) == pytest.approx(metrics.mmd(a, b, np.median(distances)))
    assert metrics.mmd(1000 * a, 1000 * b) == pytest.approx(metrics.mmd(a, b))
    # Far from the origin digits must not be lost.
    assert metrics.mmd(a + 1e6, b + 1e6) == pytest.approx(metrics.mmd(a, b), abs=1e-7)
    monkeypatch.setattr(metrics, "BLOCK", 25)
    assert metrics.median_bandwidth(a, b) == pytest.approx(np.median(distances), rel=0.25)
    for bandwidth in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(BrainLDMError, match="bandwidth"):
            metrics.mmd(a, b, bandwidth)
    with pytest.raises(BrainLDMError, match="bandwidth"):
        metrics.mmd(np.ones((4, 2)), np.ones((3, 2)))
    with pytest.raises(BrainLDMError, match="rbf or linear"):
        metrics.mmd(a, b, kernel="cubic")


def test_blocks_change_no_value(monkeypatch):
    a, b = gaussians(23, 31, 5)
    bandwidth = metrics.median_bandwidth(a, b)
    kinds = [metrics.kernel_distance, lambda x, y: metrics.mmd(x, y, bandwidth)]
    kinds.append(lambda x, y: metrics.mmd(x, y, kernel="linear", unbiased=False))
    whole, neighbours = [kind(a, b) for kind in kinds], metrics.prdc(a, b)
    monkeypatch.setattr(metrics, "BLOCK", 7)
    assert [kind(a, b) for kind in kinds] == pytest.approx(whole, rel=1e-10)
    assert metrics.prdc(a, b) == neighbours


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
        for metric in (metrics.frechet_distance, metrics.kernel_distance, metrics.mmd, metrics.prdc):
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
