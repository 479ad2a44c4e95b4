// Command http is a service of HTTP: a page on which numbers come up, one a
// second, by server-sent events. Each client has its own, without a gap: over
// reloads, moves to other workers, their deaths, and connections that break. Run it with
// "go run ./examples/http run", open http://127.0.0.1:8080, and reload the service with
// "go run ./examples/http reload" meanwhile.
package main

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/mainstay-go/mainstay/pkg/service"
)

const page = `<!doctype html><title>Numbers</title><pre id=numbers></pre><script>
new EventSource("/events").onmessage = e => { numbers.textContent += e.data + "\n" }
</script>`

// reader is what the service remembers of a stream, wherever that goes.
type reader struct{ Next int }

var worker string // who answers

func main() {
	s := service.New("http")
	s.OnWorkerStart(func(w *service.Worker) error {
		worker = fmt.Sprintf("worker %d, generation %d", w.Slot(), w.Generation())
		return nil
	})

	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		io.WriteString(w, page)
	})
	mux.HandleFunc("POST /count", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "%d bytes, counted by %s\n", n, worker)
	})

	s.Listen("http", "tcp://127.0.0.1:8080", service.Web{
		Handler: mux,
		Streams: map[string]service.Stream{"/events": service.Events[reader]{
			OnRequest: func(r *http.Request) (reader, error) {
				last, _ := strconv.Atoi(r.Header.Get("Last-Event-ID")) // 0 at first
				return reader{Next: last + 1}, nil
			},
			OnConnect: func(c *service.EventStream[reader]) { c.SetTimer("number", 0) },
			OnAdopt: func(c *service.EventStream[reader], why service.Reason) {
				if why == service.Crash || why == service.Restart {
					c.SetTimer("number", time.Second) // timers die with their worker
				}
			},
			OnTimer: func(c *service.EventStream[reader], _ string) {
				n := c.State.Next
				err := c.Send(service.Event{ID: strconv.Itoa(n), Data: fmt.Appendf(nil, "%d, from %s", n, worker)})
				if err != nil {
					c.CloseNow(err) // the client asks again for what it has not got
					return
				}
				c.State.Next++
				c.Save() // for the worker that takes up the stream if this one is killed
				c.SetTimer("number", time.Second)
			},
		}},
	})
	s.Main()
}
