package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain lets the test binary be the processes that are measured.
func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(play(role, os.Stdin, os.Stdout))
	}
	goleak.VerifyTestMain(m)
}

func TestSmallRoundsHandEverythingOver(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run([]string{"--sizes", "30/1,61/2", "--rounds", "2", "--rate", "500", "--json"}, &out, &errs); code != 0 || errs.Len() > 0 {
		t.Fatalf("exit code %d, %s", code, &errs)
	}
	var rows []row
	if err := json.Unmarshal(out.Bytes(), &rows); err != nil {
		t.Fatal(err)
	}
	for i, want := range []size{{30, 1}, {61, 2}} {
		r := rows[i]
		if r.Connections != want.connections || r.Pairs != want.pairs || len(r.Rates) != 2 || len(r.Bare) != 2 {
			t.Errorf("row %+v, want %+v and two rounds", r, want)
		}
		if r.Errors != 0 || r.Stall.Count != 2*want.connections || r.Stall.Max <= 0 || r.Rates[0] <= 0 || r.Bare[0] <= 0 {
			t.Errorf("row %+v, want a stall of each connection in each round, and no error", r)
		}
	}
	out.Reset()
	pointers := []*row{&rows[0], &rows[1]}
	if err := report(&out, pointers, false); err != nil || strings.Count(out.String(), "\n") != 3 {
		t.Errorf("%v: %q", err, &out)
	}
}

func TestSummaryIsOfAllThatWasSeen(t *testing.T) {
	var all []time.Duration
	for i := range 100 {
		all = append(all, time.Duration(100-i)*time.Microsecond)
	}
	if got, want := summarize(all), (summary{Count: 100, P50: 51, P99: 100, Max: 100}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := summarize(nil); got != (summary{}) {
		t.Errorf("%+v of nothing", got)
	}
}

func TestWrongCommandLinesAreRefused(t *testing.T) {
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--help"}, 0, "usage:"},
		{[]string{"--speed"}, 2, "not defined"},
		{[]string{"extra"}, 2, "want no arguments"},
		{[]string{"--sizes", "10"}, 2, `"10" is no size`},
		{[]string{"--sizes", "1/2"}, 2, `"1/2" is no size`},
	} {
		var out bytes.Buffer
		if code := run(tt.args, &out, &out); code != tt.code || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%q: exit code %d, %s, want %d and %q", tt.args, code, &out, tt.code, tt.want)
		}
	}
}
