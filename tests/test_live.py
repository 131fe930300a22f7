"""The live widgets without a browser, with a drawer in place of a model."""

import asyncio
import re

import numpy as np
import pytest
from test_controls import PANELS, RANGES

from brainldm_core import live, live_controls, live_pictures
from brainldm_core.controls import controls
from brainldm_core.errors import BrainLDMError

AFFINE = np.diag([5.0, 5.0, 5.0, 1.0])
VENTRICLES = "ventricular_volume_ml"


class Model:
    """A drawer that counts its calls; a brain is as bright as its request, and speckled by its person."""

    def __init__(self):
        self.asked, self.error = [], None

    def __call__(self, request, person, sampler, steps, progress=None):
        self.asked.append((dict(request), person, sampler, steps))
        if self.error:
            raise self.error
        noise = np.random.default_rng(person).random((6, 8, 6))
        return (0.5 * request[VENTRICLES] / 120 + 0.5 * noise).astype(np.float32)


def measure(volume):
    return {"measured_lateral_ventricles_ml": 43.8, "measured_brain_volume_ml": 1123.0}


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch):
    """Bytes that tell volumes apart, in place of a drawing that takes a good part of a second."""
    monkeypatch.setattr(live_pictures, "one_brain", lambda volume, spacing_mm: volume.tobytes())
    monkeypatch.setattr(live_pictures, "following", lambda panels, trail, brain: repr(trail).encode())
    monkeypatch.setattr(live_pictures, "png", lambda drawn: b"\x89PNG" + drawn)


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def source(model):
    return live.Source(RANGES, AFFINE, 1000, model, measure)


@pytest.fixture
def box(source):
    return live.live_explorer(source)


def test_the_first_brain_is_that_of_the_sliders(box, model):
    (asked,) = model.asked
    assert asked == (box.parts["request"](), 0, "dpmpp", 10)
    assert asked[0] == {"sex": "F", **{column: slider.value for column, slider in box.parts["sliders"].items()}}
    assert bytes(box.parts["picture"].value).startswith(b"\x89PNG") and "drawn in" in box.parts["status"].value


def test_one_released_slider_is_one_brain(box, model):
    before = bytes(box.parts["picture"].value)
    slider = box.parts["sliders"][VENTRICLES]
    assert not slider.continuous_update  # else a drag would ask for a brain at every pixel
    slider.value = 70
    assert len(model.asked) == 2 and model.asked[-1][0][VENTRICLES] == 70
    assert bytes(box.parts["picture"].value) != before
    box.parts["sex"].value = "M"
    assert len(model.asked) == 3 and model.asked[-1][0]["sex"] == "M"


def test_same_noise_and_same_request_give_the_same_brain_and_another_noise_another(box, model):
    slider, picture = box.parts["sliders"][VENTRICLES], box.parts["picture"]
    first = bytes(picture.value)
    slider.value += 10
    slider.value -= 10
    assert bytes(picture.value) == first and {person for _, person, *_ in model.asked} == {0}
    box.parts["again"].click()
    assert model.asked[-1][1] == 1 and len(model.asked) == 4 and bytes(picture.value) != first
    box.parts["person"].value = 0
    assert bytes(picture.value) == first


def test_without_same_noise_every_request_is_another_person_in_one_draw(box, model):
    box.parts["same"].value = False
    assert len(model.asked) == 1  # the switch itself asks for nothing
    for place, value in enumerate((50, 60, 70), start=2):
        box.parts["sliders"][VENTRICLES].value = value
        assert len(model.asked) == place
    assert [person for _, person, *_ in model.asked] == [0, 1, 2, 3] and box.parts["person"].value == 3
    box.parts["sampler"].value = "unipc"  # to compare samplers, the person has to stay
    assert model.asked[-1][1:] == (3, "unipc", 10)


def test_a_sampler_brings_its_usual_steps_in_one_draw(box, model):
    box.parts["sampler"].value = "ddim"
    assert model.asked[-1][2:] == ("ddim", 50) and len(model.asked) == 2
    box.parts["steps"].value = 20
    assert model.asked[-1][2:] == ("ddim", 20) and len(model.asked) == 3
    box.parts["sampler"].value = "ddpm"
    assert model.asked[-1][2:] == ("ddpm", 1000) and box.parts["steps"].disabled


@pytest.mark.parametrize("value, beyond", [(0, True), (4, True), (5, False), (77, False), (78, True)])
def test_beyond_the_range_words_colours_and_frame_change(box, value, beyond):
    slider, words, picture = (box.parts["sliders"][VENTRICLES], box.parts["words"], box.parts["picture"])
    slider.value = value
    colour = live_pictures.EXTRAPOLATED if beyond else live_pictures.INSIDE
    assert slider.style.handle_color == colour and colour in words.value and colour in picture.layout.border_top
    assert ("Extrapolation" in words.value) == beyond == ("4.2 to 77.1 ml" in words.value)


def test_the_command_follows_the_request(box):
    box.parts["sliders"][VENTRICLES].value = 33
    box.parts["person"].value = 12
    text = box.parts["command"].value
    assert "--ventricles 33ml" in text and "--seed 12 --sampler dpmpp --steps 10" in text and "Copy as command" in text


def test_what_was_measured_stands_beside_what_was_asked(box):
    cells = re.findall("<td>(.*?)</td>", box.parts["numbers"].value)
    assert cells == ["ventricles", "41 ml", "43.8 ml", "+2.8 ml", "brain", "1190 ml", "1123 ml", "-67.0 ml"]


def test_errors_are_said_in_words_and_the_sliders_live_on(box, model):
    picture = bytes(box.parts["picture"].value)
    for error, words in (
        (BrainLDMError("steps 0: choose <1>"), "steps 0: choose &lt;1&gt;"),
        (MemoryError("x"), "MemoryError: x"),
    ):
        model.error = error
        box.parts["again"].click()
        assert words in box.parts["status"].value and bytes(box.parts["picture"].value) == picture
    model.error = KeyboardInterrupt()
    box.parts["again"].click()
    assert "stopped" in box.parts["status"].value
    model.error = None
    box.parts["again"].click()
    assert "drawn in" in box.parts["status"].value and bytes(box.parts["picture"].value) != picture


def test_requests_in_quick_succession_are_answered_together_where_a_loop_runs():
    done = []

    async def hasty():
        ask = live.coalesced(lambda: done.append(1), 0.01)
        for _ in range(5):
            ask()
        assert not done
        await asyncio.sleep(0.1)

    asyncio.run(hasty())
    assert done == [1]


def test_the_band_and_the_marks_lie_where_the_training_range_is():
    for control in controls(RANGES, PANELS):
        low, high = (f"{100 * control.share(end):.2f}%" for end in (control.trained_low, control.trained_high))
        assert f"{live_pictures.INSIDE} {low} {high}" in live_controls.band(control, "x")
        marks = live_controls.strip(control)
        assert f'left:{low};top:2px">{control.trained_low:.1f}'.removesuffix(".0") in marks and f"left:{high}" in marks
        for at, text in control.ticks:
            assert f'left:{100 * control.share(at):.2f}%;top:15px">{text}<' in marks


def test_sliders_of_the_extrapolation_chapter_go_below_zero(source, model):
    box = live.live_explorer(source, PANELS)
    box.parts["sliders"][VENTRICLES].value = -32
    assert model.asked[-1][0][VENTRICLES] == -32 and "ventricles -32 ml" in box.parts["words"].value
    assert "--ventricles=-32ml" in box.parts["command"].value


def test_niivue_is_shown_on_a_click_and_follows(box):
    pytest.importorskip("ipyniivue")
    import nibabel as nib

    assert box.parts["stage"].children == ()
    box.parts["turn"].value = True
    (view,) = box.parts["stage"].children
    (volume,) = view.volumes
    image = nib.Nifti1Image.from_bytes(volume.data)
    assert np.allclose(image.affine, AFFINE) and image.shape == (6, 8, 6)
    box.parts["sliders"][VENTRICLES].value = 70
    assert len(view.volumes) == 1 and view.volumes[0].data != volume.data and volume.comm is None
    box.parts["turn"].value = False
    assert box.parts["stage"].children == ()


def test_without_niivue_the_explorer_says_how_to_get_it(box, monkeypatch):
    monkeypatch.setattr(live_pictures, "has_niivue", lambda: False)
    box.parts["turn"].value = True
    assert "pip install ipyniivue" in box.parts["stage"].children[0].value
    box.parts["sliders"][VENTRICLES].value = 70
    assert "drawn in" in box.parts["status"].value


def test_what_cannot_be_measured_quickly_is_not(model):
    box = live.live_explorer(live.Source(RANGES, AFFINE, 1000, model))
    assert "takes long" in box.parts["numbers"].value


def test_knobs_add_a_point_a_request_to_the_panel_of_what_was_turned(source, model):
    base = {"sex": "M", "age_years": 61.5, VENTRICLES: 25.3, "brain_volume_ml": np.nan}
    cloud = np.array([10.0, 20.0])
    box = live.live_knobs(source, base, {"ventricles": (cloud, cloud), "brain": (cloud, cloud)})
    assert set(box.parts["sliders"]) == {VENTRICLES, "brain_volume_ml"}
    box.parts["sliders"][VENTRICLES].value = 50
    box.parts["sliders"]["brain_volume_ml"].value = 1150
    box.parts["again"].click()
    assert all(row["sex"] == "M" and row["age_years"] == 61.5 for row, *_ in model.asked)
    assert box.parts["trail"] == [
        ("ventricles", 25.3, 43.8, "person 0"),
        ("ventricles", 50.0, 43.8, "person 0"),
        ("brain", 1150.0, 1123.0, "person 0"),
        ("brain", 1150.0, 1123.0, "person 1"),
    ]
    picture = bytes(box.parts["picture"].value)
    box.parts["forget"].click()
    assert len(box.parts["trail"]) == 1 and bytes(box.parts["picture"].value) != picture
