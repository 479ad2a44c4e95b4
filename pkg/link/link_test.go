package link

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// TestMain lets the test binary be a worker that reports what it inherited.
func TestMain(m *testing.M) {
	if IsWorker() {
		report()
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

type inheritance struct {
	Error    string
	Identity Identity
	Config   string
	Open     []int // descriptors from 3 on that are not close-on-exec
	Env      []string
}

func report() {
	var r inheritance
	if in, err := Inherit(); err != nil {
		r.Error = err.Error()
	} else {
		r.Identity, r.Config = in.Identity, string(in.Config)
		for fd := FDControl; fd < FDListeners+len(in.Sockets); fd++ {
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
				r.Open = append(r.Open, fd)
			}
		}
	}
	for _, v := range os.Environ() {
		if strings.HasPrefix(v, Env) || strings.HasPrefix(v, "LISTEN_") || strings.HasPrefix(v, "NOTIFY_") {
			r.Env = append(r.Env, v)
		}
	}
	json.NewEncoder(os.Stdout).Encode(r)
}

var someone = Identity{
	Contract: Contract, Service: "app", Pool: "worker", Slot: 2, Incarnation: 9, Generation: 3, Epoch: 1, Seat: 4,
	Listeners:   []Listener{{Name: "echo", Address: "tcp://127.0.0.1:80"}},
	Predecessor: &Death{PID: 77, Class: "signal", Detail: "killed by SIGKILL"},
}

// inherit runs the test binary as a worker with the descriptors of files,
// from 3 on.
func inherit(t *testing.T, env []string, files ...*os.File) inheritance {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(env, "GORACE=atexit_sleep_ms=0")
	cmd.ExtraFiles = files
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var r inheritance
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	return r
}

func inheritable(t *testing.T) []*os.File {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(l, 1); err != nil {
		t.Fatal(err)
	}
	config, err := ConfigFile([]byte("settings"))
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	files := []*os.File{os.NewFile(uintptr(pair[0]), "control"), null, config, null, null, null, os.NewFile(uintptr(l), "listener")}
	t.Cleanup(func() {
		unix.Close(pair[1])
		for _, f := range files {
			f.Close()
		}
	})
	return files
}

func TestWorkerInheritsWhatTheTableSays(t *testing.T) {
	base := []string{"LISTEN_PID=1", "LISTEN_FDS=2", "NOTIFY_SOCKET=/x", "MAINSTAY_WORKER=old", "KEEP=1"}
	r := inherit(t, someone.Environ(base), inheritable(t)...)
	if r.Error != "" {
		t.Fatal(r.Error)
	}
	if !reflect.DeepEqual(r.Identity, someone) {
		t.Errorf("identity %+v, want %+v", r.Identity, someone)
	}
	if r.Config != "settings" {
		t.Errorf("configuration %q, want settings", r.Config)
	}
	if len(r.Open) != 0 {
		t.Errorf("descriptors %v would leak into what the worker starts", r.Open)
	}
	if len(r.Env) != 0 {
		t.Errorf("the worker still sees %v", r.Env)
	}
}

func TestBrokenInheritanceIsNamed(t *testing.T) {
	for _, tt := range []struct {
		name  string
		env   string
		files func([]*os.File) []*os.File
		want  string
	}{
		{"no JSON", Env + "=nonsense", nil, `MAINSTAY_WORKER="nonsense"`},
		{"other contract", Env + `={"contract":99}`, nil, "contract 99, want 1 or 2"},
		{"incomplete", Env + `={"contract":2,"pool":"worker"}`, nil, "incomplete"},
		{"listener missing", someone.Environ(nil)[0], func(f []*os.File) []*os.File { return f[:6] }, "fd 9"},
		{"no listener", someone.Environ(nil)[0], func(f []*os.File) []*os.File { f[6] = f[1]; return f }, `listener "echo": fd 9 is no listening and no datagram socket`},
		{"no control socket", someone.Environ(nil)[0], func(f []*os.File) []*os.File { f[0] = f[6]; return f }, "fd 3 is no control socket"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			files := inheritable(t)
			if tt.files != nil {
				files = tt.files(append([]*os.File{}, files...))
			}
			if r := inherit(t, []string{tt.env}, files...); !strings.Contains(r.Error, tt.want) {
				t.Errorf("error %q, want %q in it", r.Error, tt.want)
			}
		})
	}
}

func TestConfigurationThatIsTooLargeIsRefused(t *testing.T) {
	if f, err := ConfigFile(make([]byte, MaxConfig+1)); err == nil {
		f.Close()
		t.Error("accepted")
	}
}

func TestFilesStandAtTheirNumbers(t *testing.T) {
	got := Files{Null: 10, Output: 11, Control: 13, Stats: 14, Config: 15, Stderr: 16, Crash: 17, Rows: 20, Listeners: []int{18, 19}}.Table()
	want := []uintptr{0: 10, 1: 11, 2: 11, FDControl: 13, FDStats: 14, FDConfig: 15, FDStderr: 16, FDCrash: 17, FDRows: 20, FDListeners: 18, FDListeners + 1: 19}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("table %v, want %v", got, want)
	}
}

var bodies = []Body{
	Hello{Contract: 1, Incarnation: 2, Generation: 3, Build: "v1"}, Ready{}, Draining{Connections: 4}, Failed{Reason: "no"},
	Accept{}, Rearm{}, Drain{Prompt: true, Grace: time.Minute}, Stop{}, LogLevel{Level: "debug"}, Paused{Listener: "echo", Reason: "EMFILE"},
	Gather{ID: 7, What: "connections", Arg: json.RawMessage(`{"limit":3}`)}, Gathered{ID: 7, Error: "the loop does not answer"},
	Readiness{Ready: true}, Readiness{Reason: "no database"},
	Kept{PID: 77}, Kept{Reason: "a filter forbids it"}, Adopt{Living: []uint64{1, 2}},
}

func pair(t *testing.T) (near, far *Channel) {
	t.Helper()
	near, fd, err := Pair(1)
	if err != nil {
		t.Fatal(err)
	}
	far, err = NewChannel(fd, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

func TestEveryMessageArrivesAsItWasSent(t *testing.T) {
	near, far := pair(t)
	for i, body := range bodies {
		if err := near.Send(body); err != nil {
			t.Fatal(err)
		}
		m, err := far.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(m.Body, body) || m.FD != -1 || m.Seq != uint64(i+1) || m.Epoch != 1 {
			t.Errorf("received %+v, want %+v", m, body)
		}
	}
}

func TestMessagesOfALowerEpochAreDropped(t *testing.T) {
	near, far := pair(t)
	send := func(epoch uint64, level string) {
		near.epoch.Store(epoch)
		if err := near.Send(LogLevel{Level: level}); err != nil {
			t.Fatal(err)
		}
	}
	send(5, "first")
	send(4, "fenced")
	send(5, "second")
	for _, want := range []string{"first", "second"} {
		m, err := far.Recv()
		if err != nil || m.Body != (LogLevel{Level: want}) {
			t.Errorf("received %+v %v, want %s", m, err, want)
		}
	}
}

func TestUnknownKindIsSkippedOnlyIfItMayBe(t *testing.T) {
	b, err := Encode(Message{Epoch: 1, Body: Ready{}})
	if err != nil {
		t.Fatal(err)
	}
	b[0] = 200
	if _, err := Decode(b); err == nil || !strings.Contains(err.Error(), "unknown kind 200") {
		t.Errorf("error %v", err)
	}
	b[2] = flagIgnorable
	if m, err := Decode(b); err != nil || m.Body != nil {
		t.Errorf("decoded %+v, %v", m, err)
	}
}

func TestAnswerTravelsBesideItsMessage(t *testing.T) {
	near, far := pair(t)
	f, err := AnswerFile([]byte("the answer"))
	if err != nil {
		t.Fatal(err)
	}
	if err := near.SendFile(Gathered{ID: 3}, int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	f.Close()
	m, err := far.Recv()
	if err != nil || m.Body != (Gathered{ID: 3}) || m.FD < 0 {
		t.Fatalf("received %+v, %v", m, err)
	}
	got, err := ReadAnswer(m.FD)
	if err != nil || string(got) != "the answer" {
		t.Errorf("answer %q, %v", got, err)
	}
	if _, err := AnswerFile(make([]byte, MaxAnswer+1)); err == nil {
		t.Error("an answer over the limit was taken")
	}
}

func TestDescriptorOfADroppedMessageIsClosed(t *testing.T) {
	near, far := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	far.epoch.Store(9) // what near sends is of an epoch before
	if err := near.SendFile(Ready{}, int(w.Fd())); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, ok, err := far.TryRecv(); ok || err != nil {
		t.Fatalf("received something, %v", err)
	}
	if n, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read %d %v, want EOF: somebody still has the other end", n, err)
	}
}

func TestSuccessorHearsWhatTheOneBeforeWasToldAndIsObeyedAlone(t *testing.T) {
	near, worker := pair(t)
	worker.Send(Draining{Connections: 1})
	fd, err := near.Dup()
	if err != nil {
		t.Fatal(err)
	}
	heir, err := InheritChannel(fd, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer heir.Close()
	worker.Send(Draining{Connections: 2})
	for i := range 2 {
		if m, ok, err := heir.TryRecv(); !ok || err != nil || m.Body != (Draining{Connections: i + 1}) {
			t.Errorf("received %+v %v %v", m, ok, err)
		}
	}
	heir.Send(Adopt{Living: []uint64{3}})
	near.Send(Stop{}) // it is not dead after all
	if m, err := worker.Recv(); err != nil || m.Epoch != 2 || !reflect.DeepEqual(m.Body, Adopt{Living: []uint64{3}}) {
		t.Errorf("received %+v %v", m, err)
	}
	if m, ok, err := worker.TryRecv(); ok || err != nil {
		t.Errorf("received %+v %v of the epoch before", m, err)
	}
	worker.Send(Ready{})
	if m, ok, err := heir.TryRecv(); !ok || err != nil || m.Epoch != 2 {
		t.Errorf("received %+v %v %v", m, ok, err)
	}
	if _, err := InheritChannel(int(os.Stdin.Fd()), 2); err == nil {
		t.Error("standard input was taken for a control socket")
	}
}

func TestSenderNeverWaitsForOneWhoDoesNotRead(t *testing.T) {
	near, _ := pair(t)
	for range 1 << 16 {
		if err := near.Send(Rearm{}); err != nil {
			if !errors.Is(err, ErrBusy) {
				t.Errorf("error %v, want ErrBusy", err)
			}
			return
		}
	}
	t.Error("65536 messages fit")
}

func TestReceiverLearnsThatTheOtherIsGone(t *testing.T) {
	near, far := pair(t)
	near.Send(Ready{})
	near.Close()
	if m, err := far.Recv(); err != nil || m.Body != (Ready{}) {
		t.Errorf("received %+v %v, want what was sent before", m, err)
	}
	if _, err := far.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("error %v, want EOF", err)
	}
}

func TestInterruptedReceiverCanTakeWhatIsLeft(t *testing.T) {
	near, far := pair(t)
	ended := make(chan error)
	go func() {
		_, err := far.Recv()
		ended <- err
	}()
	far.Interrupt()
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("error %v, want os.ErrDeadlineExceeded", err)
	}
	if _, ok, err := far.TryRecv(); ok || err != nil {
		t.Errorf("received something (%v) of nothing", err)
	}
	near.Send(Draining{Connections: 3})
	if m, ok, err := far.TryRecv(); !ok || err != nil || m.Body != (Draining{Connections: 3}) {
		t.Errorf("received %+v %v %v", m, ok, err)
	}
}

func TestReceiverOfAClosedChannelIsTold(t *testing.T) {
	_, far := pair(t)
	ended := make(chan error)
	go func() {
		_, err := far.Recv()
		ended <- err
	}()
	far.Close()
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("error %v, want os.ErrClosed", err)
	}
	if _, err := far.Recv(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("error %v, want os.ErrClosed", err)
	}
}

func TestLongReasonIsCut(t *testing.T) {
	long := strings.Repeat("\x01", 1<<20)
	for _, body := range []Body{Failed{Reason: long}, Readiness{Reason: long}, Kept{Reason: long}} {
		b, err := Encode(Message{Body: body})
		if err != nil || len(b) > MaxMessage {
			t.Errorf("%T: %d bytes, %v", body, len(b), err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, body := range bodies {
		b, err := Encode(Message{Epoch: 1, Seq: 2, Body: body})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-1])
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil || m.Body == nil {
			return
		}
		again, err := Encode(m)
		if err != nil {
			t.Fatalf("%+v was decoded but cannot be encoded: %v", m, err)
		}
		m2, err := Decode(again)
		if err != nil {
			t.Fatal(err)
		}
		if f, ok := m.Body.(Failed); ok && len(f.Reason) > maxReason {
			return
		}
		if r, ok := m.Body.(Readiness); ok && len(r.Reason) > maxReason {
			return
		}
		if !reflect.DeepEqual(m2.Body, m.Body) && !bytes.Equal(again, b) {
			t.Errorf("decoded %+v, then %+v", m, m2)
		}
	})
}

func FuzzParseIdentity(f *testing.F) {
	f.Add(strings.TrimPrefix(someone.Environ(nil)[0], Env+"="))
	f.Add(`{"contract":1}`)
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		id, err := ParseIdentity(text)
		if err != nil {
			return
		}
		again, err := ParseIdentity(strings.TrimPrefix(id.Environ(nil)[0], Env+"="))
		if err != nil || again.Pool != id.Pool || again.Incarnation != id.Incarnation {
			t.Errorf("%+v, then %+v, %v", id, again, err)
		}
	})
}
