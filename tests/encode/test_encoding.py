from coin_export.encode.encoding import plain_notes


def test_what_is_not_finite_in_a_note_is_left_out() -> None:
    assert plain_notes({"rungs": [{"held_out_error": float("inf")}], "start": "coin"}) == {
        "rungs": [{"held_out_error": None}],
        "start": "coin",
    }
