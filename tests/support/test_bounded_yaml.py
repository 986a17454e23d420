import pytest

from toxloc.support.bounded_yaml import MAX_CHARACTERS, MAX_NODES, parse_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_plain_documents_are_read():
    assert parse_yaml("a: [1, 2.5, no, 'no', null]\nb:\n  c: 0x10") == {
        "a": [1, 2.5, False, "no", None],
        "b": {"c": 16},
    }
    assert parse_yaml("") is None
    assert parse_yaml("3") == 3


def test_aliases_and_merged_mappings_are_read():
    text = "usual: &usual {k: 2, mode: hooks}\nfirst: *usual\nsecond: {<<: *usual, k: 3}"
    assert parse_yaml(text)["second"] == {"k": 3, "mode": "hooks"}
    assert parse_yaml(text)["first"] == {"k": 2, "mode": "hooks"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, f"more than {MAX_NODES:,} values"),
        ("a: &a [*a]", "the value in line 1 contains itself"),
        ("[" * 20_000, "nested too deeply"),
        ("{a: " * 20_000, "nested too deeply"),
        ("x" * (MAX_CHARACTERS + 1), "1,000,001 characters"),
        ("a: 1\nb: 2\na: 3", "the key 'a' occurs 2 times"),
        ("a: [1, 2", "expected ',' or '\\]'.* in line 1"),
        ("a: b: c", "mapping values are not allowed here in line 1"),
        ('a: "\\ud800"', "line 1 has a lone surrogate"),
        ("a: \0", "special characters are not allowed"),
        ("n: " + "9" * 5000, "4300"),
        ("!!python/object/apply:os.system [echo]", "could not determine a constructor"),
        ("{[1]: 2}", "unhashable"),
        ("a: 1\n---\nb: 2", "expected a single document|but found another document"),
    ],
)
def test_other_documents_are_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_yaml(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300
