package worker

import (
	"encoding/json"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/mainstay-go/mainstay/pkg/link"
)

// answerTimeout is how long the loop has for a question; the supervisor waits
// a little longer.
const answerTimeout = 1500 * time.Millisecond

// Teller answers a question of the supervisor's; arg is JSON, as is usually
// the answer. It is called from a goroutine of its own and may wait, but not
// longer than the supervisor does: two seconds.
type Teller func(arg json.RawMessage) ([]byte, error)

// Tell has f answer the questions called what. It panics if somebody else
// does already. Any goroutine may call it.
func (w *Worker) Tell(what string, f Teller) {
	if _, taken := w.tellers.LoadOrStore(what, f); taken {
		panic(fmt.Sprintf("worker: two tell %q", what))
	}
}

// OnLoop runs f on the loop and waits for its end. It returns an error, and f
// may run later or not at all, if the loop does not get to it in time. It
// must not be called on the loop.
func (w *Worker) OnLoop(f func()) error {
	done := make(chan struct{})
	if err := w.loop.Post(func() { defer close(done); f() }); err != nil {
		return fmt.Errorf("worker: %w", err)
	}
	select {
	case <-done:
		return nil
	case <-time.After(answerTimeout):
		return fmt.Errorf("worker: the loop does not answer")
	}
}

// answer answers one question.
func (w *Worker) answer(g link.Gather) {
	reply := link.Gathered{ID: g.ID}
	f, ok := w.tellers.Load(g.What)
	if !ok {
		reply.Error = fmt.Sprintf("this worker cannot tell %q", g.What)
		w.send(reply)
		return
	}
	var text []byte
	err := guard(g.What, func() (err error) {
		text, err = f.(Teller)(g.Arg)
		return err
	})
	if err != nil {
		reply.Error = err.Error()
		w.send(reply)
		return
	}
	file, err := link.AnswerFile(text)
	if err != nil {
		reply.Error = err.Error()
		w.send(reply)
		return
	}
	defer file.Close()
	if err := w.control.SendFile(reply, int(file.Fd())); err != nil {
		w.log.Warn("question not answered", zap.String("what", g.What), zap.Error(err))
	}
}
