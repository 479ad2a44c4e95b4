package tlsrec

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"
)

const (
	// TicketRotation is how long a session ticket key is the one that new
	// tickets are made with.
	TicketRotation = 24 * time.Hour

	// ticketsKept is how many former keys are still good for old tickets:
	// crypto/tls takes none that is older than a week.
	ticketsKept = 7

	// MinTicketSeed is the least length of a seed, in bytes.
	MinTicketSeed = 32
)

// TicketKeys returns the keys for tls.Config.SetSessionTicketKeys at the time
// now, and the time from which there are others. All processes that have one
// seed derive the same, so a session that one has opened another resumes. The
// key of the next period is among them: whoever is late to rotate can still
// read what others hand out.
//
// The seed must be random and secret. Whoever has it can read the tickets of
// all periods, and so the TLS 1.2 connections they were used for; what TLS 1.3
// carried stays closed to him. To bound that, replace the seed now and then.
// It fails if the seed is shorter than MinTicketSeed.
func TicketKeys(seed []byte, now time.Time) (keys [][32]byte, until time.Time, err error) {
	if len(seed) < MinTicketSeed {
		return nil, time.Time{}, fmt.Errorf("tlsrec: ticket seed of %d bytes, want at least %d", len(seed), MinTicketSeed)
	}
	prk, err := hkdf.Extract(sha256.New, seed, []byte("mainstay session tickets"))
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("tlsrec: ticket seed: %w", err)
	}
	defer clear(prk)
	const seconds = int64(TicketRotation / time.Second)
	period := max(now.Unix(), 0) / seconds
	periods := []int64{period} // the first is what new tickets are made with
	for n := range int64(ticketsKept) {
		if period-1-n >= 0 {
			periods = append(periods, period-1-n)
		}
	}
	periods = append(periods, period+1)
	for _, p := range periods {
		key, err := hkdf.Expand(sha256.New, prk, string(binary.BigEndian.AppendUint64(nil, uint64(p))), 32)
		if err != nil {
			return nil, time.Time{}, fmt.Errorf("tlsrec: ticket key: %w", err)
		}
		keys = append(keys, [32]byte(key))
		clear(key)
	}
	return keys, time.Unix((period+1)*seconds, 0), nil
}
