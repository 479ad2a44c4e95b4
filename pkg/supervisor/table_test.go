package supervisor

import (
	"maps"
	"slices"
	"testing"
)

// droppedEvents are the pairs that incarnations has no row for, with the
// reason why nothing is to happen.
var droppedEvents = map[string]string{
	"spawned ready":       "only after hello: a worker that skips it is caught by its start timeout",
	"spawned left":        "it never had the listeners",
	"spawned hasten":      "only those that drain are hastened",
	"unready hello":       "said twice, changes nothing",
	"unready left":        "it never had the listeners",
	"unready hasten":      "only those that drain are hastened",
	"ready hello":         "said twice, changes nothing",
	"ready ready":         "said twice, changes nothing",
	"ready hasten":        "only those that drain are hastened",
	"ready timeout":       "its timer was stopped; a late firing carries an old turn",
	"late hello":          "sent before the kill arrived",
	"late ready":          "sent before the kill arrived: too late",
	"late left":           "sent before the kill arrived",
	"late hasten":         "it is being killed already",
	"late timeout":        "its timer was stopped: the kernel does not fail to kill",
	"late unsettling":     "it is being killed already",
	"draining hello":      "sent before it was asked to leave",
	"draining ready":      "sent before it was asked to leave",
	"draining unsettling": "it leaves anyway, and its timer runs",
	"overdue hello":       "sent before the kill arrived",
	"overdue ready":       "sent before the kill arrived",
	"overdue left":        "sent before the kill arrived",
	"overdue retire":      "it is being killed already",
	"overdue hasten":      "it is being killed already",
	"overdue timeout":     "its timer was stopped: the kernel does not fail to kill",
	"overdue unsettling":  "it is being killed already",
	"gone hello":          "exited is the last that a process sends",
	"gone ready":          "exited is the last that a process sends",
	"gone left":           "exited is the last that a process sends",
	"gone retire":         "it is in no slot any more",
	"gone hasten":         "it is in no slot any more",
	"gone timeout":        "its timer was stopped; a late firing carries an old turn",
	"gone exited":         "a process dies once",
	"gone unsettling":     "exited is the last that a process sends",
	"spawned stalled":     "only those that serve are judged; its start has a deadline",
	"spawned bloated":     "only those that serve are judged; its start has a deadline",
	"unready stalled":     "only those that serve are judged; its start has a deadline",
	"unready bloated":     "only those that serve are judged; its start has a deadline",
	"late stalled":        "it is being killed already",
	"late bloated":        "it is being killed already",
	"hung hello":          "said twice, changes nothing",
	"hung ready":          "said twice, changes nothing",
	"hung left":           "it is being killed already",
	"hung hasten":         "only those that drain are hastened",
	"hung unsettling":     "it is being killed already",
	"hung stalled":        "it is being killed already",
	"hung bloated":        "it is being killed already",
	"draining stalled":    "it leaves anyway, and its timer runs",
	"draining bloated":    "it leaves anyway, and its timer runs",
	"overdue stalled":     "it is being killed already",
	"overdue bloated":     "it is being killed already",
	"spawned handed":      "it hands over only when it drains",
	"unready handed":      "it hands over only when it drains",
	"ready handed":        "it hands over only when it drains",
	"late handed":         "it hands over only when it drains",
	"hung handed":         "it hands over only when it drains",
	"gone handed":         "exited is the last that a process sends",
	"spawned heirless":    "only those that drain hand over to somebody",
	"unready heirless":    "only those that drain hand over to somebody",
	"ready heirless":      "only those that drain hand over to somebody",
	"late heirless":       "only those that drain hand over to somebody",
	"hung heirless":       "only those that drain hand over to somebody",
	"overdue heirless":    "it is being killed already",
	"gone heirless":       "what it had is closed with it",
	"gone stalled":        "only those that serve are judged",
	"gone bloated":        "only those that serve are judged",
}

func TestEveryEventOfAProcessHasARowOrAReason(t *testing.T) {
	seen := 0
	for st := range numStates {
		for ev := range numEvents {
			pair := state(st).String() + " " + event(ev).String()
			_, row := incarnations[occasion{state(st), event(ev)}]
			_, dropped := droppedEvents[pair]
			switch {
			case row && dropped:
				t.Errorf("%s: has a row and a reason to be dropped", pair)
			case !row && !dropped:
				t.Errorf("%s: has neither a row nor a reason to be dropped", pair)
			case dropped:
				seen++
			}
		}
	}
	if seen != len(droppedEvents) {
		t.Errorf("%d of %d reasons are for pairs that exist", seen, len(droppedEvents))
	}
}

// droppedTurns are the pairs that slots has no row for.
var droppedTurns = map[string]string{
	"empty up":            "nobody is starting there",
	"empty failed":        "whoever was starting was sent away with the slot",
	"empty died":          "whoever served was sent away with the slot",
	"empty replace":       "there is nobody to replace",
	"empty abandon":       "there is nobody to abandon",
	"empty dismiss":       "nobody is wanted already",
	"empty hold":          "there is no slot to hold: it is being removed",
	"held up":             "whoever was starting was sent away",
	"held failed":         "whoever was starting was sent away",
	"held died":           "whoever served was sent away",
	"held replace":        "a reload passes it over",
	"held abandon":        "there is nobody to abandon",
	"held due":            "its timer was stopped; a late firing carries an old round",
	"held hold":           "it is held already",
	"empty due":           "its timer was stopped; a late firing carries an old round",
	"starting fill":       "a worker is coming already",
	"starting died":       "nobody serves there",
	"starting abandon":    "only a replacement is abandoned; this one is the slot's worker",
	"starting due":        "its timer was stopped; the start has its own deadline",
	"serving fill":        "there is a worker already",
	"serving up":          "nobody is starting there",
	"serving failed":      "nobody is starting there: a dropped replacement is draining",
	"serving abandon":     "the replacement has failed already",
	"serving due":         "its timer was stopped; a late firing carries an old round",
	"replacing fill":      "there is a worker already",
	"replacing due":       "its timer was stopped; the start has its own deadline",
	"proving fill":        "there is a worker already",
	"proving up":          "the one on trial was up before",
	"settling fill":       "there is a worker already",
	"settling up":         "nobody is starting there",
	"settling failed":     "nobody is starting there",
	"settling abandon":    "only a replacement is abandoned; this one is the slot's worker",
	"backing off fill":    "a start is timed already",
	"backing off up":      "nobody is starting there",
	"backing off failed":  "nobody is starting there",
	"backing off died":    "nobody serves there",
	"backing off abandon": "there is nobody to abandon",

	"handing over fill":    "there is a worker already",
	"handing over up":      "nobody is starting there",
	"handing over failed":  "nobody is starting there: a dropped replacement is draining",
	"handing over abandon": "the replaced worker was told to leave already: it comes back by a replacement",
	"empty given":          "nobody waits for it any more",
	"starting given":       "nobody waits for it: whoever took the connections is dead",
	"serving given":        "nobody waits for it: its time was over",
	"replacing given":      "nobody waits for it any more: the taker is replaced itself",
	"proving given":        "nobody waits for it any more: the taker is replaced itself",
	"settling given":       "nobody waits for it: whoever took the connections is dead",
	"backing off given":    "nobody waits for it: whoever took the connections is dead",
	"held given":           "nobody waits for it any more",
}

func TestEveryEventOfASlotHasARowOrAReason(t *testing.T) {
	seen := 0
	for pl := range numPlaces {
		for tu := range numTurns {
			pair := place(pl).String() + " " + turn(tu).String()
			_, row := slots[situation{place(pl), turn(tu)}]
			_, dropped := droppedTurns[pair]
			switch {
			case row && dropped:
				t.Errorf("%s: has a row and a reason to be dropped", pair)
			case !row && !dropped:
				t.Errorf("%s: has neither a row nor a reason to be dropped", pair)
			case dropped:
				seen++
			}
		}
	}
	if seen != len(droppedTurns) {
		t.Errorf("%d of %d reasons are for pairs that exist", seen, len(droppedTurns))
	}
}

func TestEveryStateIsReachedAndLeft(t *testing.T) {
	reached := map[state]bool{spawned: true}
	for range numStates {
		for from, to := range incarnations {
			if reached[from.in] {
				reached[to.next] = true
			}
		}
	}
	if got := len(slices.Collect(maps.Keys(reached))); got != numStates {
		t.Errorf("%d of %d states are reached: %v", got, numStates, reached)
	}
	for st := range gone {
		if row, ok := incarnations[occasion{st, exited}]; !ok || row.next != gone {
			t.Errorf("a death in %s does not end in gone", st)
		}
	}
	for pl := empty + 1; int(pl) < numPlaces; pl++ {
		if row, ok := slots[situation{pl, dismiss}]; !ok || row.next != empty {
			t.Errorf("dismissing a slot that is %s does not end in empty", pl)
		}
	}
}
