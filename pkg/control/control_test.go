package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if address := os.Getenv(roleVariable); address != "" {
		os.Exit(playSupervisor(address))
	}
	goleak.VerifyTestMain(m)
}

type backend struct {
	mu      sync.Mutex
	status  Status
	scaled  ScaleRequest
	stopped bool
	reload  func(ReloadRequest, func(string)) error
}

func (b *backend) Status(context.Context) (Status, error) { return b.status, nil }

func (b *backend) Reload(_ context.Context, r ReloadRequest, step func(string)) error {
	return b.reload(r, step)
}

func (b *backend) Scale(_ context.Context, r ScaleRequest) ([]Handover, error) {
	if r.N < 1 {
		return nil, fmt.Errorf("%w: %d workers", ErrInvalid, r.N)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.scaled = r
	return []Handover{{Slot: 3, PID: 42, State: HandoverOver, Moved: 5, LongestStallUS: 1200}}, nil
}

func (b *backend) Stop(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		return errors.New("stops already")
	}
	b.stopped = true
	return nil
}

// start serves a backend and returns a client and the socket's path.
func start(t *testing.T, b Backend) (*Client, string) {
	t.Helper()
	return startWith(t, NewServer(b))
}

func startWith(t *testing.T, s *Server) (*Client, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "control.sock")
	l, err := Listen("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket's file is still there: %v", err)
		}
	})
	c, err := NewClient("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	return c, path
}

func TestStatusArrivesWhole(t *testing.T) {
	b := &backend{status: Status{Service: "app", State: StateServing, Generation: 3, Listeners: []Listener{{Name: "echo", Address: "tcp://[::1]:80", Inherited: true}},
		Pools: []Pool{{Name: "worker", Want: 1, Workers: []Worker{{Slot: 0, PID: 42, State: "ready", Messages: 1 << 60, HeartbeatAgeMS: -1}}}}}}
	c, _ := start(t, b)
	got, err := c.Status(t.Context())
	if err != nil || !reflect.DeepEqual(got, b.status) {
		t.Errorf("status %+v %v, want %+v", got, err, b.status)
	}
}

func TestReloadTellsItsStepsAndItsVerdict(t *testing.T) {
	for _, verdict := range []error{nil, errors.New("worker 0 of generation 2: exit status 3")} {
		b := &backend{reload: func(r ReloadRequest, step func(string)) error {
			for k, v := range r.Env {
				step(k + "=" + v)
			}
			step("replacing")
			return verdict
		}}
		c, _ := start(t, b)
		var steps []string
		err := c.Reload(t.Context(), ReloadRequest{Env: map[string]string{"APP_WORKERS": "4"}}, func(s string) { steps = append(steps, s) })
		if fmt.Sprint(err) != fmt.Sprint(verdict) {
			t.Errorf("verdict %v, want %v", err, verdict)
		}
		if want := []string{"APP_WORKERS=4", "replacing"}; !reflect.DeepEqual(steps, want) {
			t.Errorf("steps %q, want %q", steps, want)
		}
	}
}

func TestRefusalCarriesItsReason(t *testing.T) {
	c, _ := start(t, &backend{})
	if _, err := c.Scale(t.Context(), ScaleRequest{N: 0}); err == nil || err.Error() != "invalid request: 0 workers" {
		t.Errorf("error %v", err)
	}
	if d, err := c.Scale(t.Context(), ScaleRequest{N: 3}); err != nil || d.Message != "scaled to 3" || len(d.Handovers) != 1 || d.Handovers[0].Moved != 5 {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := c.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := c.Stop(t.Context()); err == nil || err.Error() != "stops already" {
		t.Errorf("error %v", err)
	}
}

func TestMalformedRequestsAreRefused(t *testing.T) {
	c, _ := start(t, &backend{})
	for _, tt := range []struct {
		method, path, body string
		code               int
	}{
		{"GET", "/v1/nothing", "", 404},
		{"GET", "/v1/scale", "", 404},
		{"POST", "/v1/scale", "", 400},
		{"POST", "/v1/scale", "{", 400},
		{"POST", "/v1/scale", `{"n":"three"}`, 400},
		{"POST", "/v1/scale", `{"n":3,"speed":1}`, 400},
		{"POST", "/v1/scale", `{"n":3}{"n":4}`, 400},
		{"POST", "/v1/reload", `{"env":[]}`, 400},
		{"POST", "/v1/reload", `{"env":{"A":"` + strings.Repeat("x", MaxRequest) + `"}}`, 400},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tt.method, "http://control"+tt.path, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tt.code {
			t.Errorf("%s %s %.40q: %d %s, want %d", tt.method, tt.path, tt.body, resp.StatusCode, body, tt.code)
		}
	}
}

func TestAbsentServiceIsNotRunning(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: stale}); err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	for _, path := range []string{filepath.Join(dir, "absent"), stale} {
		c, err := NewClient("unix://" + path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Status(t.Context()); !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), path) {
			t.Errorf("error %v, want ErrNotRunning and %s", err, path)
		}
	}
	// What a dead server has left behind is no obstacle.
	l, err := Listen("unix://" + stale)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestAddressThatCannotBeIsRefused(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, live := start(t, &backend{})
	for _, tt := range []struct{ address, want string }{
		{"", "want unix:///path"},
		{"tcp://127.0.0.1:80", "want unix:///path"},
		{"unix://relative", "want unix:///path"},
		{"unix:///" + strings.Repeat("x", 200), "want at most"},
		{"unix:///nonexistent/dir/s", "nonexistent"},
		{"unix://" + plain, "is no socket"},
		{"unix://" + live, "another process listens"},
	} {
		if l, err := Listen(tt.address); err == nil {
			l.Close()
			t.Errorf("%.60s was bound", tt.address)
		} else if !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.60s: error %q, want %q in it", tt.address, err, tt.want)
		}
	}
}

func TestSocketIsOpenToItsGroupOnly(t *testing.T) {
	_, path := start(t, &backend{})
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v %v, want 0660", info.Mode(), err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("%v %v beside the socket", entries, err)
	}
}

func TestStrangersMayNotOperate(t *testing.T) {
	stranger := uint32(os.Geteuid()) + 4711
	for _, tt := range []struct {
		name string
		peer *peer
		ok   bool
	}{
		{"root", &peer{cred: &unix.Ucred{Uid: 0, Gid: 1}, own: 5}, true},
		{"own user", &peer{cred: &unix.Ucred{Uid: uint32(os.Geteuid()), Gid: 1}, own: 5}, true},
		{"own group", &peer{cred: &unix.Ucred{Uid: stranger, Gid: 5}, own: 5}, true},
		{"supplementary group", &peer{cred: &unix.Ucred{Uid: stranger, Gid: 1}, groups: []int{4, 5}, own: 5}, true},
		{"stranger", &peer{cred: &unix.Ucred{Uid: stranger, Gid: 1}, groups: []int{4}, own: 5}, false},
		{"unknown", &peer{err: errors.New("no credentials")}, false},
		{"none", nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := allowed(context.WithValue(t.Context(), peerKey{}, tt.peer))
			if (err == nil) != tt.ok {
				t.Errorf("allowed: %v, want %v", err, tt.ok)
			}
		})
	}
}

func TestServerThatDiesBeforeItsVerdictIsSaid(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		c.Read(make([]byte, 4096))
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n{\"message\":\"replacing\"}\n")
		c.Close()
		l.Close()
	}()
	c, err := NewClient("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	steps := 0
	if err := c.Reload(t.Context(), ReloadRequest{}, func(string) { steps++ }); err == nil || !strings.Contains(err.Error(), "before its verdict") {
		t.Errorf("error %v", err)
	}
	if steps != 1 {
		t.Errorf("%d steps, want 1", steps)
	}
}

func FuzzRequests(f *testing.F) {
	for _, s := range []string{"", "{}", `{"n":3}`, `{"pool":"worker","n":1}`, `{"env":{"A":"b"},"detach":true}`, `{"env":null}x`, `[`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := DecodeReload(bytes.NewReader(b)); err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("reload: %v does not match ErrInvalid", err)
		}
		if _, err := DecodeScale(bytes.NewReader(b)); err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("scale: %v does not match ErrInvalid", err)
		}
	})
}
