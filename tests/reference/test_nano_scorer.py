"""The scorer against scenes whose truth is known, and the table that is made of its answers."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from sana_reference.nano.components import components
from sana_reference.nano.evaluation import CATEGORIES, Score, evaluate, is_answered, questions, table
from sana_reference.nano.scenes import Scene, draw
from sana_reference.nano.scorer import read_picture
from sana_reference.nano.split import is_held_out, scenes
from sana_reference.nano.vocabulary import COLOURS, KINDS


def drawn_scenes(count: int, held_out: bool = False) -> list[Scene]:
    return list(islice(scenes(np.random.default_rng(3), held_out=held_out), count))


def paint_truth(asked):
    return lambda prompts, seeds: np.stack([draw(asked[seed].scene) for seed in seeds])


def test_it_reads_at_least_99_of_100_fresh_scenes_without_a_mistake():
    asked = drawn_scenes(400)
    right = 0
    for scene in asked:
        found = read_picture(draw(scene))
        right += sorted((f.kind, f.colour) for f in found) == sorted((t.kind, t.colour) for t in scene.things)
    assert right >= 0.99 * len(asked)


def test_it_finds_shapes_where_they_stand():
    for scene in drawn_scenes(60):
        for found in read_picture(draw(scene)):
            nearest = min(np.hypot(t.x / 128 - found.x, t.y / 128 - found.y) for t in scene.things)
            assert nearest < 0.06


def test_it_reads_larger_pictures_alike():
    for scene in drawn_scenes(20):
        small, large = (read_picture(draw(scene, side)) for side in (128, 256))
        assert [(f.kind, f.colour) for f in small] == [(f.kind, f.colour) for f in large]


def test_it_sees_nothing_in_noise_and_in_an_empty_picture():
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert all("unknown" in (found.kind, found.colour) for found in read_picture(noise))
    assert read_picture(np.full((128, 128, 3), 200, np.uint8)) == []


def test_a_blot_is_not_given_the_name_of_a_shape():
    y, x = np.mgrid[:128, :128]
    blot = ((x - 60) ** 2 / 900 + (y - 64) ** 2 / 100 < 1) | ((x - 75) ** 2 + (y - 48) ** 2 < 90)
    picture = np.where(blot[..., None], np.array(COLOURS["red"]), 242).astype(np.uint8)
    assert [found.kind for found in read_picture(picture)] == ["unknown"]


def test_parts_that_meet_below_are_one():
    letter = np.array([[1, 0, 1], [1, 0, 1], [1, 1, 1]], bool)
    assert [part.sum() for part in components(letter, least=1)] == [7]


def test_parts_that_touch_at_a_corner_are_two_and_small_ones_are_dropped():
    mask = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]], bool)
    assert [part.sum() for part in components(mask, least=1)] == [4, 1]
    assert [part.sum() for part in components(mask, least=2)] == [4]


def test_true_pictures_answer_every_question():
    asked = questions(20)
    assert all(evaluate(paint_truth(asked), asked))


def test_questions_are_of_held_out_scenes_and_of_every_category():
    asked = questions(5)
    assert all(is_held_out(question.scene) for question in asked)
    assert [question.category for question in asked] == [name for name in CATEGORIES for _ in range(5)]


def test_a_picture_of_another_scene_answers_hardly_any_question():
    asked = [question for question in questions(15) if CATEGORIES[question.category].colour]
    others = [question.scene for question in asked[7:] + asked[:7]]
    answers = evaluate(lambda prompts, seeds: np.stack([draw(others[seed]) for seed in seeds]), asked)
    assert np.mean(answers) < 0.1


@pytest.mark.parametrize("category", [name for name, telling in CATEGORIES.items() if telling.colour])
def test_one_wrong_colour_is_a_wrong_answer(category):
    question = next(question for question in questions(3) if question.category == category)
    first, *rest = question.scene.things
    other = next(c for c in COLOURS if c not in {t.colour for t in question.scene.things} and c != "white")
    scene = replace(question.scene, things=(replace(first, colour=other), *rest), background="gray", texture="plain")
    truth = replace(question.scene, background="gray", texture="plain")
    assert is_answered(question, read_picture(draw(truth)))
    assert not is_answered(question, read_picture(draw(scene)))


def test_a_pair_the_wrong_way_round_is_a_wrong_answer():
    asked = [q for q in questions(40) if q.category == "position" and len(q.scene.things) == 2]
    for question in asked[:8]:
        first, second = question.scene.things
        swapped = (replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y))
        radius = min(first.radius, second.radius)
        scene = replace(question.scene, things=tuple(replace(thing, radius=radius) for thing in swapped))
        assert not is_answered(question, read_picture(draw(scene)))


def test_one_shape_too_many_is_a_wrong_answer():
    question = next(question for question in questions(3) if question.category == "counting")
    found = read_picture(draw(question.scene))
    assert is_answered(question, found)
    assert not is_answered(question, [*found, found[0]])
    assert not is_answered(question, found[1:])


def test_the_table_counts_by_category_and_over_all():
    asked = questions(2)
    answers = [question.category != "counting" for question in asked]
    scores = table(asked, answers)
    assert scores["counting"] == Score(0, 2)
    assert scores["overall"] == Score(10, 12)


def test_wilsons_interval_is_the_textbooks():
    low, high = Score(81, 263).interval()
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert Score(10, 10).interval()[1] == pytest.approx(1.0)


def test_the_known_silhouettes_are_the_vocabularys():
    from sana_reference.nano.silhouettes import KNOWN

    assert tuple(KNOWN) == KINDS
