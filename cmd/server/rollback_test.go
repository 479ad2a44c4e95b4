package main

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
)

func TestRollbackReturnsUnderTrafficAlsoWhenAnotherSupervisorHasMadeTheRelease(t *testing.T) {
	m := startManager(t, 3)
	first := m.well()
	if first.LastGood != nil {
		t.Errorf("the last good release is %+v, want none", first.LastGood)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var steps []string
	rollback := func() error {
		steps = nil
		return m.client.Rollback(ctx, func(step string) { steps = append(steps, step) })
	}
	if err := rollback(); err == nil || !strings.Contains(err.Error(), "no earlier release") {
		t.Errorf("a rollback of the first release: %v, want a refusal", err)
	}
	g := m.talkers(100, 50*time.Millisecond)
	m.configure("max_old = 3\n")
	if err := m.client.Reload(ctx, control.ReloadRequest{}, func(string) {}); err != nil {
		t.Fatal(err)
	}
	second := m.renewed()
	m.die(unix.SIGKILL)
	m.start()
	if st := m.well(); st.LastGood == nil || st.LastGood.Generation != first.Generation || st.LastGood.Executable == "" || st.LastGood.Build == "" || st.Release.Generation != second.Generation {
		t.Errorf("release %+v, last good %+v", st.Release, st.LastGood)
	}
	if err := rollback(); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(steps, func(s string) bool { return strings.Contains(s, "connections moved") }) {
		t.Errorf("the steps are %q", steps)
	}
	if st := m.renewed(); st.Generation != first.Generation || st.LastGood != nil || !st.LastReload.Back {
		t.Errorf("generation %d, last good %+v, last reload %+v", st.Generation, st.LastGood, st.LastReload)
	}
	m.wantStored()
	m.everyVerbWorks() // a reload, which goes forward, among them
	if st := m.renewed(); st.Generation != second.Generation+1 || st.LastGood == nil || st.LastGood.Generation != first.Generation {
		t.Errorf("generation %d, last good %+v", st.Generation, st.LastGood)
	}
	talked(t, g)
	m.wantStored()
}
