package system

import (
	"fmt"
	"testing"
	"time"
)

func journalHasFieldsByWhichWorkersAreFound(t *testing.T, m *machine) {
	s := install(t, m, server(t))
	s.configure("workers = 4\n[reload]\nbake = \"100ms\"\n")
	s.start()
	st := s.awaitStatus(10*time.Second, allReady(4))
	worker := workers(st)[3]
	s.must(t, "systemctl", "reload", s.unit) // so that it has something to say

	// What the worker itself says, and what its supervisor says of it.
	var own, told int
	eventually(t, 5*time.Second, func() error {
		entries := s.journal("WORKER=3")
		own, told = 0, 0
		for _, entry := range entries {
			switch entry["_PID"] {
			case fmt.Sprint(worker.PID):
				own++
			case fmt.Sprint(st.PID):
				told++
			}
			for _, field := range []string{"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "GENERATION"} {
				if entry[field] == nil {
					t.Errorf("an entry without %s: %v", field, entry)
				}
			}
			if entry["_TRANSPORT"] != "journal" {
				t.Errorf("an entry by way of %v, want journald's own protocol: %v", entry["_TRANSPORT"], entry)
			}
		}
		if own == 0 || told == 0 {
			return fmt.Errorf("WORKER=3 finds %d entries of pid %d and %d of the supervisor: %v", own, worker.PID, told, messages(entries))
		}
		return nil
	})
	for _, entry := range s.journal("WORKER=2") {
		if entry["WORKER"] != "2" {
			t.Errorf("WORKER=2 finds %v", entry)
		}
	}
}
