"""The figures of `bench`: of every part and of the whole, sound in themselves, as a table and as JSON."""

import json

import pytest

from sana_export.cli import main

NAMES = ["text_encoder", "caption", "transformer", "decoder", "picture"]


def output_of(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return left.value.code, capsys.readouterr()


@pytest.fixture(scope="module")
def bundle(built):
    return built("sana").path


def test_every_part_and_the_picture_are_timed(bundle, capsys):
    code, said = output_of(capsys, "bench", bundle, "--repeats", 3, "--steps", 2, "--size", "64x96", "--json")
    assert code == 0
    *progress, found = [json.loads(line) for line in said.out.splitlines()]
    stages = [each["stage"] for each in progress if each["event"] == "progress"]
    assert list(dict.fromkeys(stages)) == ["open", *NAMES]  # a long one is told of more than once
    assert [row["name"] for row in found["measured"]] == NAMES
    assert (found["size"], found["steps"]) == ("64x96", 2)
    for row in found["measured"]:
        assert len(row["runs"]) == 3
        assert 0 < min(row["runs"]) <= row["median"] <= max(row["runs"])
        assert row["spread"] == pytest.approx((max(row["runs"]) - min(row["runs"])) / row["median"])
    picture, transformer = found["measured"][-1], found["measured"][2]
    assert picture["first"] > transformer["load"]  # the first picture loads every part
    if found["peak_memory"] is not None:
        assert found["peak_memory"] > sum(row["memory"] or 0 for row in found["measured"]) / 2


def test_people_get_a_table(bundle, capsys):
    code, said = output_of(capsys, "bench", bundle, "--repeats", 1, "--steps", 1)
    assert code == 0
    assert [line.split()[0] for line in said.out.splitlines()[3:8]] == NAMES


@pytest.mark.parametrize("options", [["--size", "33x64"], ["--device", "abacus"], ["--repeats", 0]])
def test_what_cannot_be_measured_is_refused(bundle, capsys, options):
    code, said = output_of(capsys, "bench", bundle, *options)
    assert code == 2
    assert said.out == ""
