package unit

import (
	"math"
	"strconv"
	"strings"
	"time"
)

// spanUnits are those of systemd.time(7) that occur in units.
var spanUnits = map[string]time.Duration{
	"us": time.Microsecond, "usec": time.Microsecond, "ms": time.Millisecond, "msec": time.Millisecond,
	"": time.Second, "s": time.Second, "sec": time.Second, "second": time.Second, "seconds": time.Second,
	"m": time.Minute, "min": time.Minute, "minute": time.Minute, "minutes": time.Minute,
	"h": time.Hour, "hr": time.Hour, "hour": time.Hour, "hours": time.Hour,
	"d": 24 * time.Hour, "day": 24 * time.Hour, "days": 24 * time.Hour,
	"w": 7 * 24 * time.Hour, "week": 7 * 24 * time.Hour, "weeks": 7 * 24 * time.Hour,
}

// forever stands for infinity.
const forever = time.Duration(math.MaxInt64)

// parseSpan reads a span of time as systemd.time(7) has it: "90", "1min 30s",
// "100ms", "infinity".
func parseSpan(text string) (time.Duration, error) {
	if text == "infinity" {
		return forever, nil
	}
	total := 0.0
	rest := strings.TrimSpace(text)
	if rest == "" {
		return 0, errTime
	}
	for rest != "" {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789."))
		n, err := strconv.ParseFloat(rest[:digits], 64)
		if err != nil {
			return 0, errTime
		}
		rest = strings.TrimLeft(rest[digits:], " ")
		letters := len(rest) - len(strings.TrimLeft(rest, "abcdefghijklmnopqrstuvwxyz"))
		unit, ok := spanUnits[rest[:letters]]
		if !ok {
			return 0, errTime
		}
		total += n * float64(unit)
		rest = strings.TrimLeft(rest[letters:], " ")
	}
	if total >= float64(forever) {
		return forever, nil
	}
	return time.Duration(total), nil
}

// parseLimit reads a resource limit, "N", "SOFT:HARD" or "infinity", and
// returns the hard one: the Go runtime raises the soft limit to it.
func parseLimit(text string) (uint64, bool) {
	if _, hard, ok := strings.Cut(text, ":"); ok {
		text = hard
	}
	if text == "infinity" {
		return math.MaxUint64, true
	}
	n, err := strconv.ParseUint(text, 10, 64)
	return n, err == nil
}

// isYes reads a boolean as systemd.syntax(7) has it.
func isYes(text string) bool {
	switch strings.ToLower(text) {
	case "1", "yes", "y", "true", "t", "on":
		return true
	}
	return false
}
