from snnet_vitdet.soak import PHASES, Tally


def test_the_table_adds_up():
    tally = Tally()
    kill, stop = "SIGKILL to all processes", "SIGTERM to the main process"
    tally.add([(1, "training", kill), (1, "sweep, scores", stop)], lost=False, repeated=3)
    tally.add([(1, "training", kill), (1, "training", kill)], lost=True, repeated=5)
    tally.add([(2, "initialisation", stop)], lost=False, repeated=0)
    tally.add([], lost=False, repeated=0)
    assert (tally.num_faults, tally.num_survived) == (5, 3)
    assert (tally.rounds, tally.equal_rounds, tally.repeated) == (4, 3, 8)
    assert tally.phases() == {"training", "sweep, scores", "initialisation"}

    table, _, totals = tally.markdown(PHASES).partition("\n\n")
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[2:]]
    assert rows == [
        ["1", "training", kill, "3", "1"],
        ["1", "sweep, scores", stop, "1", "1"],
        ["2", "initialisation", stop, "1", "1"],
        ["", "", "**all**", "**5**", "**3**"],
    ]
    assert totals.startswith("4 rounds with 5 faults: 3 ended with the weights")
    assert "8 iterations were done again" in totals
