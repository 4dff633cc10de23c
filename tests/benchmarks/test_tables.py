def test_every_table_has_a_score_of_all(quick):
    results = quick("tables")
    assert list(results) == ["wine", "breast cancer", "diabetes"]
    for each in results.values():
        assert list(each) == ["PolyStep", "Adam, standardised", "Adam"]
        assert all(len(scores) == 1 and scores[0] <= 1 for scores in each.values())
