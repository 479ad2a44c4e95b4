package journal

import (
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	// repeatInterval is the time within which a line repeats another.
	repeatInterval = 10 * time.Second

	// repeatBurst is how many of them are written before they are counted.
	repeatBurst = 5

	// maxRepeats bounds how many different lines are watched; what is beyond
	// is written.
	maxRepeats = 1024
)

// repeats keeps a trouble that goes on and on from filling the log: of lines
// that say the same of the same listener and worker, only the first few of an
// interval are written. The others are counted, and told of once, at the end
// of the interval.
type repeats struct {
	report func(repeated) // writes a line about those that were not

	mu     sync.Mutex
	seen   map[repeatKey]*repeated
	closed bool
}

// repeatKey is what makes a line a repetition of another.
type repeatKey struct {
	level            zapcore.Level
	logger, message  string
	listener, worker string
}

// repeated is a line that comes again and again.
type repeated struct {
	key    repeatKey
	format format // of its logger

	// What the line itself, and not its logger, says.

	listener, worker string

	until   time.Time
	written int
	held    int         // since the interval began
	timer   *time.Timer // set once a line is held back
}

// with finds the listener and the worker among fields.
func (k repeatKey) with(fields []zapcore.Field) repeatKey {
	for i := range fields {
		to := &k.listener
		switch fields[i].Key {
		case "worker":
			to = &k.worker
		case "listener":
		default:
			continue
		}
		switch f := fields[i]; f.Type {
		case zapcore.StringType:
			*to = f.String
		case zapcore.Int64Type, zapcore.Int32Type:
			*to = strconv.FormatInt(f.Integer, 10)
		}
	}
	return k
}

// hold reports whether the line is a repetition too many, which it then
// counts.
func (r *repeats) hold(key repeatKey, c *core, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	line := r.seen[key]
	switch {
	case line == nil || !now.Before(line.until) && line.held == 0:
		if line == nil && len(r.seen) >= maxRepeats {
			r.sweep(now)
			if len(r.seen) >= maxRepeats {
				return false
			}
		}
		line = &repeated{key: key, format: c.format, until: now.Add(repeatInterval), written: 1}
		if key.listener != c.key.listener {
			line.listener = key.listener
		}
		if key.worker != c.key.worker {
			line.worker = key.worker
		}
		r.seen[key] = line
		return false
	case line.written < repeatBurst:
		line.written++
		return false
	case r.closed:
		return false
	}
	line.held++
	if line.timer == nil {
		line.timer = time.AfterFunc(line.until.Sub(now), func() { r.tell(line) })
	}
	return true
}

// tell reports what was held back, and begins anew.
func (r *repeats) tell(line *repeated) {
	r.mu.Lock()
	if r.closed || r.seen[line.key] != line {
		r.mu.Unlock()
		return
	}
	delete(r.seen, line.key)
	r.mu.Unlock()
	r.report(*line)
}

// sweep forgets lines whose interval is over.
func (r *repeats) sweep(now time.Time) {
	for key, line := range r.seen {
		if line.held == 0 && !now.Before(line.until) {
			delete(r.seen, key)
		}
	}
}

// close reports what is held back. Nothing is held back any more.
func (r *repeats) close() {
	r.mu.Lock()
	r.closed = true
	var held []*repeated
	for _, line := range r.seen {
		if line.held > 0 {
			line.timer.Stop()
			held = append(held, line)
		}
	}
	r.mu.Unlock()
	for _, line := range held {
		r.report(*line)
	}
}

// reportRepeats writes the line about lines that were held back.
func (l *Log) reportRepeats(r repeated) {
	entry := zapcore.Entry{Level: r.key.level, Time: time.Now(), LoggerName: r.key.logger, Message: "line repeated"}
	fields := []zap.Field{zap.String("line", r.key.message), zap.Int("times", r.held)}
	if r.listener != "" {
		fields = append(fields, zap.String("listener", r.listener))
	}
	if r.worker != "" {
		fields = append(fields, zap.String("worker", r.worker))
	}
	l.enqueue(r.format.line(entry, fields))
}
