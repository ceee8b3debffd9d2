"""An index says all that is needed, and a damaged or contradictory one is refused in one line."""

import json

import pytest

from chatgot.data.shards.index import INDEX, Blocks, read_index, vocabulary_of
from chatgot.errors import ConfigError


@pytest.fixture
def stored(make) -> dict:
    return json.loads((make() / INDEX).read_bytes())


def test_an_index_is_read_as_it_was_written(make):
    content = (make() / INDEX).read_bytes()
    index = read_index(content, "x")
    assert index.to_json() == content
    assert vocabulary_of(index, "x").tokens == index.vocabulary
    assert index.train.tokens > 0
    assert index.held_out.tokens > 0


def test_every_block_has_its_place_in_a_shard(make):
    folder = make()
    index = read_index((folder / INDEX).read_bytes(), "x")
    blocks = Blocks(index, index.train)
    sizes: dict[str, int] = {}
    for number in range(blocks.count):
        name, inside, size = blocks.place(number)
        assert sizes.get(name, 0) == inside * index.block_bytes
        sizes[name] = sizes.get(name, 0) + size
    assert sizes == {shard.name: shard.bytes for shard in index.train.shards}
    assert len(sizes) > 2
    assert sizes == {name: (folder / name).stat().st_size for name in sizes}


def spoil(stored: dict, path: str, value: object) -> None:
    *outer, last = path.split(".")
    for name in outer:
        stored = stored[int(name) if name.isdigit() else name]
    stored[int(last) if last.isdigit() else last] = value


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("format", 2, "format"),
        ("token_bytes", 3, "token_bytes"),
        ("block_tokens", 0, "block_tokens"),
        ("vocabulary", [], "vocabulary"),
        ("duplicates", -1, "duplicates"),
        ("train.tokens", 5, "tokens: 5, but its shards have another sum"),
        ("train.shards.0.name", "../../etc/passwd", "train.shards.0.name"),
        ("train.shards.0.bytes", 7, "7 bytes, but its tokens take"),
        ("train.shards.0.sha256", "x", "train.shards.0.sha256"),
        ("surprise", 1, "surprise"),
    ],
)
def test_a_contradictory_index_is_refused_in_one_line(stored, path, value, words):
    spoil(stored, path, value)
    with pytest.raises(ConfigError, match="make them again") as caught:
        read_index(json.dumps(stored).encode(), "folder")
    message = str(caught.value)
    assert message.startswith(f"folder/{INDEX}: ")
    assert words in message
    assert "\n" not in message


def test_an_index_that_is_cut_short_is_refused_in_one_line(make):
    content = (make() / INDEX).read_bytes()
    for end in (0, 1, len(content) // 2):
        with pytest.raises(ConfigError) as caught:
            read_index(content[:end], "folder")
        assert "\n" not in str(caught.value)


def test_a_shard_with_a_broken_block_in_the_middle_is_refused(stored):
    shards = stored["train"]["shards"]
    shards[0], shards[-1] = shards[-1], shards[0]
    with pytest.raises(ConfigError, match="no whole blocks"):
        read_index(json.dumps(stored).encode(), "folder")


def test_a_vocabulary_that_is_none_is_refused(stored):
    stored["vocabulary"][1] = stored["vocabulary"][2]
    index = read_index(json.dumps(stored).encode(), "folder")
    with pytest.raises(ConfigError, match="occurs twice"):
        vocabulary_of(index, "folder")
