// Command probe is the service of the tests on real systemd that need more
// than one program: it tells a version, counts the starts of its workers, logs
// as many lines as a line "log N" asks for, answers who talks to it with its
// pid, their port and the line, and wants their numbers complete, is ready or
// not when a line "ready" or "unready" says so, and its workers misbehave if
// they are built or told so.
//
//	go build -ldflags "-X main.version=2 -X main.behaviour=exit"
package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/service"
	"github.com/mainstay-go/mainstay/test/talk"
)

// Set by the linker.
var (
	version   = "1"
	behaviour = "" // of workers: "exit" or "hang" at start, "crash" right after ready
)

const lastWord = "probe: this is my last word"

type none struct{}

// listener is the state of a connection: the number that comes next. It is
// saved, so that no kind of death makes it forget one.
type listener struct{ Next int }

// answer is what a numbered line is answered with.
func answer(c *service.Conn[listener], line []byte) []byte {
	var client, n int
	if _, err := fmt.Sscanf(string(line), talk.Prefix+"%d %d", &client, &n); err != nil || n != c.State.Next {
		return fmt.Appendf(nil, "wrong: number %d was to come (%v): %s", c.State.Next, err, line)
	}
	c.State.Next++
	if err := c.Save(); err != nil {
		return fmt.Appendf(nil, "wrong: not saved: %v", err)
	}
	return append(stamp(c.Peer()), line...)
}

// stamp names this process and the port of a peer.
func stamp(peer string) []byte {
	_, port, _ := strings.Cut(peer, ":")
	return fmt.Appendf(nil, "%d %s ", os.Getpid(), port)
}

func main() {
	if link.IsWorker() {
		runtimeDir := os.Getenv("RUNTIME_DIRECTORY")
		if told, err := os.ReadFile(filepath.Join(runtimeDir, "behaviour")); err == nil {
			behaviour = string(told)
		}
		if err := note(filepath.Join(runtimeDir, "starts")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		switch behaviour {
		case "exit":
			fmt.Fprintln(os.Stderr, lastWord)
			os.Exit(3)
		case "hang":
			for {
				syscall.Pause()
			}
		}
	}

	s := service.New("app")
	lines := s.Metrics().Counter("probe_lines_total", "Lines received.")
	var worker *service.Worker
	s.Listen("echo", "", service.Raw[none]{
		OnMessage: func(c *service.Conn[none], m []byte) { c.Send(m) },
		Inline:    true,
	})
	text := service.Text[listener]{
		OnMessage: func(c *service.Conn[listener], line []byte) {
			lines.Inc()
			if bytes.HasPrefix(line, []byte(talk.Prefix)) {
				c.Send(answer(c, line))
				return
			}
			switch string(line) {
			case "ready":
				worker.SetReady(true, "")
			case "unready":
				worker.SetReady(false, "probe was told so")
			}
			var n int
			if _, err := fmt.Sscanf(string(line), "log %d", &n); err == nil {
				for i := range n {
					worker.Log().Info("asked to be logged", zap.Int("number", i), zap.Int("of", n))
				}
			}
			c.Send([]byte(version))
		},
	}
	s.Listen("text-echo", "", text)
	// Whoever has an answer of this one is at rest: the callback has returned.
	text.Inline = true
	s.Kind("text-numbers", text)
	s.Kind("ws-numbers", service.WebSocket[listener]{
		Inline: true,
		OnMessage: func(c *service.Conn[listener], m service.Message) {
			c.Send(answer(c, m.Data))
		},
	})
	s.Kind("http-numbers", service.Web{Inline: true, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		line, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Write(append(stamp(r.RemoteAddr), line...))
	})})
	s.HTTP("nethttp-hello", "", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, version)
	}))
	s.OnWorkerStart(func(w *service.Worker) error {
		worker = w
		if behaviour == "crash" {
			time.AfterFunc(50*time.Millisecond, func() { panic(lastWord) })
		}
		return nil
	})
	s.Main()
}

// note adds a line to a file of starts.
func note(file string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(f, os.Getpid()); err != nil {
		return err
	}
	return f.Close()
}
