"""Random numbers by seed, epoch, name and purpose."""

from runtime.seeding import sample_rng


def test_purposes_and_names_draw_different_numbers():
    draws = {
        sample_rng(*key).integers(2**62)
        for key in [(1, 0, "a", 0), (1, 0, "a", 1), (1, 0, "b", 0), (1, 1, "a", 0), (2, 0, "a", 0)]
    }
    assert len(draws) == 5
