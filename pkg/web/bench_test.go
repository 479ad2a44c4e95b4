package web

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkHello answers keep-alive requests on 100 connections, beside
// net/http. The clients run in the same process: cpu-ns/req is the server's
// part and theirs, which is the same in all ways.
func BenchmarkHello(b *testing.B) {
	for _, how := range all {
		for _, depth := range []int{1, 16} {
			b.Run(fmt.Sprintf("%s/deep %d", strings.NewReplacer("/", "", ",", "", " ", "-").Replace(string(how)), depth), func(b *testing.B) {
				addr := serve(b, how, func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Content-Type", "text/plain; charset=utf-8")
					io.WriteString(w, "hello\n")
				})
				const connections = 100
				request := []byte(strings.Repeat("GET /plaintext?id=42 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: wrk/4.1.0\r\nAccept: */*\r\n\r\n", depth))
				rounds := max(1, b.N/depth/connections)
				clients := make([]*client, connections)
				for i := range clients {
					clients[i] = dial(b, addr)
					clients[i].SetDeadline(time.Now().Add(time.Minute))
					clients[i].Write(request[:len(request)/depth])
					r, err := http.ReadResponse(clients[i].r, nil)
					if err != nil {
						b.Fatal(err)
					}
					io.Copy(io.Discard, r.Body)
				}
				var before, after unix.Rusage
				unix.Getrusage(unix.RUSAGE_SELF, &before)
				b.ReportAllocs()
				b.ResetTimer()
				var done sync.WaitGroup
				for _, c := range clients {
					done.Go(func() {
						for range rounds {
							c.Write(request)
							if err := skip(c.r, depth); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				done.Wait()
				b.StopTimer()
				unix.Getrusage(unix.RUSAGE_SELF, &after)
				cpu := time.Duration(after.Utime.Nano() - before.Utime.Nano() + after.Stime.Nano() - before.Stime.Nano())
				b.ReportMetric(float64(cpu.Nanoseconds())/float64(rounds*depth*connections), "cpu-ns/req")
			})
		}
	}
}

// skip reads n small responses.
func skip(r *bufio.Reader, n int) error {
	for n > 0 {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if string(line) == "hello\n" {
			n--
		}
	}
	return nil
}
