package supervisor

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/metrics"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
)

// scrapeFamilies reads the page as Prometheus does.
func (r *rig) scrapeFamilies() map[string]*dto.MetricFamily {
	r.t.Helper()
	b, err := r.Metrics(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	p := expfmt.NewTextParser(model.LegacyValidation)
	families, err := p.TextToMetricFamilies(bytes.NewReader(b))
	if err != nil {
		r.t.Fatalf("%v in:\n%s", err, b)
	}
	return families
}

// samples are the page's counters and gauges: name and labels to value.
func (r *rig) samples() (counters, gauges map[string]float64) {
	r.t.Helper()
	counters, gauges = make(map[string]float64), make(map[string]float64)
	for name, f := range r.scrapeFamilies() {
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			key := name
			if labels != nil {
				key += "{" + strings.Join(labels, ",") + "}"
			}
			switch {
			case m.Counter != nil:
				counters[key] = m.Counter.GetValue()
			case m.Gauge != nil:
				gauges[key] = m.Gauge.GetValue()
			case m.Histogram != nil:
				counters[key+" count"] = float64(m.Histogram.GetSampleCount())
			}
		}
	}
	return counters, gauges
}

// wantSamples compares some samples.
func (r *rig) wantSamples(want map[string]float64) {
	r.t.Helper()
	counters, gauges := r.samples()
	for key, v := range want {
		got, ok := counters[key]
		if !ok {
			got, ok = gauges[key]
		}
		if !ok || got != v {
			r.t.Errorf("%s is %v (there: %v), want %v", key, got, ok, v)
		}
	}
}

// seatOf is where the youngest worker of a slot sits.
func (r *rig) seatOf(slot int) *seatWords {
	return &seatWords{r.board.Seat(r.fakes.last(slot).order.identity.Seat)}
}

func TestCountsOfDeadWorkersAreKept(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		r.seatOf(0).count(10)
		r.seatOf(1).count(7)
		r.fakes.last(0).exit(Exit{Signal: unix.SIGKILL, CPU: 1500 * time.Millisecond})
		synctest.Wait()
		time.Sleep(time.Nanosecond)
		r.expect(control.StateServing, 1, 1)
		r.seatOf(0).count(5)
		r.wantSamples(map[string]float64{
			`mainstay_connections_accepted_total{pool="worker",worker="0"}`:         15,
			`mainstay_messages_total{pool="worker",worker="0"}`:                     15,
			`mainstay_messages_total{pool="worker",worker="1"}`:                     7,
			`mainstay_connections{pool="worker",worker="0"}`:                        5,
			`mainstay_worker_deaths_total{pool="worker",worker="0",class="signal"}`: 1,
			`mainstay_worker_respawns_total{pool="worker",worker="0"}`:              1,
			`mainstay_worker_respawns_total{pool="worker",worker="1"}`:              0,
			`mainstay_worker_ready{pool="worker",worker="0"}`:                       1,
			`mainstay_pool_workers_ready{pool="worker"}`:                            2,
			`mainstay_pool_workers_wanted{pool="worker"}`:                           2,
			`mainstay_worker_cpu_seconds_total{pool="worker",worker="0"}`:           1.5,
			`mainstay_state{state="serving"}`:                                       1,
			`mainstay_state{state="degraded"}`:                                      0,
			`mainstay_generation`:                                                   1,
		})
	})
}

func TestSumsNeverGoBack(t *testing.T) {
	settings := quick
	settings.Workers = 3
	supervise(t, settings, answering, func(r *rig) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		before, _ := r.samples()
		for i := range 150 {
			slots := len(r.status().Pools[0].Workers)
			slot := random.IntN(max(1, slots))
			switch random.IntN(8) {
			case 0:
				if p := r.fakes.last(slot); p != nil {
					p.exit(Exit{Signal: unix.SIGKILL, CPU: time.Duration(random.IntN(1e9))})
				}
			case 1:
				r.Scale(r.t.Context(), control.ScaleRequest{N: 1 + random.IntN(4)})
			case 2:
				r.settings.Workers = 1 + random.IntN(4)
				if random.IntN(3) == 0 {
					r.fakes.set(crashYoung)
				}
				if err := r.reload(); err != nil {
					r.fakes.set(answering)
				}
			default:
				for _, w := range r.status().Pools[0].Workers {
					if w.State == "ready" {
						r.seatOf(w.Slot).count(random.IntN(100))
					}
				}
			}
			time.Sleep(time.Duration(random.IntN(3000)) * time.Millisecond) // fake time
			synctest.Wait()
			after, _ := r.samples()
			for key, was := range before {
				if is, ok := after[key]; !ok || is < was {
					t.Fatalf("step %d: %s was %v and is %v (there: %v)", i, key, was, is, ok)
				}
			}
			before = after
		}
	})
}

// reply answers a question with v as JSON, or with err.
func reply(p *fake, id uint64, v any, err error) {
	if err != nil {
		p.order.answered(link.Gathered{ID: id, Error: err.Error()}, -1)
		return
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	f, err := link.AnswerFile(b)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	p.order.answered(link.Gathered{ID: id}, fd)
}

// answering is serve for a worker whose application counts: each time it is
// asked, one more.
func answering(p *fake) {
	r := metrics.NewRegistry()
	asked := r.CounterVec("app_asked_total", "Questions.", "kind").With("x")
	r.Gauge("app_open", "Open.").Set(2)
	took := r.Histogram("app_took_seconds", "Time.", []float64{1})
	answer := func(id uint64) {
		b, _ := metrics.Encode(r.Gather())
		f, err := link.AnswerFile(b)
		if err != nil {
			return
		}
		defer f.Close()
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return
		}
		p.order.answered(link.Gathered{ID: id}, fd)
	}
	p.hello()
	p.order.said(link.Ready{})
	for m := range p.in {
		switch m := m.(type) {
		case link.Gather:
			asked.Inc()
			took.Observe(0.5)
			answer(m.ID)
		case link.Drain:
			p.order.said(link.Draining{})
			asked.Add(100)
			answer(link.Legacy)
			p.exit(Exit{})
			return
		case link.Stop, unix.Signal:
			p.exit(Exit{})
			return
		}
	}
}

func TestApplicationsFiguresAreThereForEachWorkerAndOutliveIt(t *testing.T) {
	supervise(t, quick, answering, func(r *rig) {
		key := func(worker int) string {
			return fmt.Sprintf(`app_asked_total{pool="worker",worker="%d",kind="x"}`, worker)
		}
		r.wantSamples(map[string]float64{
			key(0): 1, key(1): 1,
			`app_open{pool="worker",worker="0"}`:               2,
			`app_took_seconds{pool="worker",worker="0"} count`: 1,
		})
		// What it had counted by the last question is kept when it is killed.
		r.fakes.last(0).exit(Exit{Signal: unix.SIGKILL})
		synctest.Wait()
		time.Sleep(time.Nanosecond)
		r.expect(control.StateServing, 1, 1)
		r.wantSamples(map[string]float64{
			key(0): 2, key(1): 2,
			`app_open{pool="worker",worker="0"}`:               2,
			`app_took_seconds{pool="worker",worker="0"} count`: 2,
		})
		// Everything is, when it leaves in order.
		if err := r.Scale(r.t.Context(), control.ScaleRequest{N: 1}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		r.wantSamples(map[string]float64{key(0): 3, key(1): 102})
		if _, gauges := r.samples(); gauges[`app_open{pool="worker",worker="1"}`] != 0 {
			t.Error("a gauge of a worker that has left")
		}
	})
}

func TestWorkerThatIsSilentIsThereWithWhatItSaidLast(t *testing.T) {
	supervise(t, quick, answering, func(r *rig) {
		r.samples()
		r.fakes.last(1).order.said(link.Paused{}) // nothing of interest
		// From here on slot 1 has a worker that never answers.
		r.fakes.set(serve)
		r.fakes.last(1).exit(Exit{Code: 2})
		synctest.Wait()
		time.Sleep(time.Nanosecond)
		r.expect(control.StateServing, 1, 1)
		began := time.Now()
		r.wantSamples(map[string]float64{
			`app_asked_total{pool="worker",worker="0",kind="x"}`: 2,
			`app_asked_total{pool="worker",worker="1",kind="x"}`: 1,
		})
		if took := time.Since(began); took != gatherTimeout {
			t.Errorf("took %v, want %v", took, gatherTimeout)
		}
	})
}

func TestWorkerThatLeavesMeanwhileIsNotSilent(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) { // nobody answers, and a drain takes a second
		if err := r.Scale(r.t.Context(), control.ScaleRequest{N: 1}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if st := r.status(); len(st.Pools[0].Workers) != 2 {
			t.Fatalf("the workers are %+v, want one that serves and one that drains", st.Pools[0].Workers)
		}
		answers, err := r.Gather(r.t.Context(), "connections", nil)
		if err != nil || len(answers) != 1 || answers[0].Slot != 0 || answers[0].Err == nil {
			t.Errorf("the answers are %+v, %v; want that worker 0 is silent", answers, err)
		}
	})
}

func TestScrapesAtATimeShareOnePage(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) { // nobody answers: a page takes two seconds
		began := time.Now()
		done := make(chan error)
		for range 20 {
			go func() {
				_, err := r.Metrics(r.t.Context())
				done <- err
			}()
		}
		for range 20 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if took := time.Since(began); took > 2*gatherTimeout {
			t.Errorf("20 scrapes took %v", took)
		}
	})
}

func TestFamilyThatNewCodeHasChangedBeginsAnew(t *testing.T) {
	supervise(t, quick, answering, func(r *rig) {
		r.samples()
		changed := func(p *fake) {
			r := metrics.NewRegistry()
			r.Counter("app_asked_total", "Without a label.").Add(1000)
			b, _ := metrics.Encode(r.Gather())
			p.hello()
			p.order.said(link.Ready{})
			for m := range p.in {
				switch m := m.(type) {
				case link.Gather:
					f, err := link.AnswerFile(b)
					if err != nil {
						return
					}
					fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
					f.Close()
					if err != nil {
						return
					}
					p.order.answered(link.Gathered{ID: m.ID}, fd)
				case link.Drain, link.Stop, unix.Signal:
					p.exit(Exit{})
					return
				}
			}
		}
		r.fakes.set(changed)
		r.fakes.last(0).exit(Exit{Code: 2})
		r.fakes.last(1).exit(Exit{Code: 2})
		synctest.Wait()
		time.Sleep(time.Nanosecond)
		r.expect(control.StateServing, 1, 1)
		r.wantSamples(map[string]float64{`app_asked_total{pool="worker",worker="0"}`: 1000})
	})
}

func TestReloadsAreCountedByTheirResult(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		r.reload()
		r.fakes.set(brokenStart)
		r.reload()
		r.loadErr = os.ErrNotExist
		r.reload()
		r.wantSamples(map[string]float64{
			`mainstay_reloads_total{result="done"}`:        1,
			`mainstay_reloads_total{result="rolled_back"}`: 1,
			`mainstay_reloads_total{result="refused"}`:     1,
			`mainstay_last_reload_successful`:              0,
			`mainstay_generation`:                          2,
		})
	})
}

// everything is a page on which every family of ours is.
func everything(t *testing.T) (names map[string]string) {
	supervise(t, quick, serve, func(r *rig) {
		r.conf.LinesDropped = func() uint64 { return 3 }
		r.reload()
		names = make(map[string]string)
		for name, f := range r.scrapeFamilies() {
			if strings.HasPrefix(name, metrics.Reserved) {
				names[name] = strings.ToLower(f.GetType().String())
			}
			if f.GetHelp() == "" {
				t.Errorf("%s has no help", name)
			}
		}
	})
	// Counted by the workers' own registries.
	names["mainstay_log_lines_dropped_total"] = "counter"
	names["mainstay_tls_handshakes_total"] = "counter"
	names["mainstay_tls_handshakes_resumed_total"] = "counter"
	names["mainstay_tls_handshakes_failed_total"] = "counter"
	names["mainstay_certificate_expiry_seconds"] = "gauge"
	return names
}

func TestNamesFollowPrometheusConventions(t *testing.T) {
	for name, typ := range everything(t) {
		if !regexp.MustCompile(`^mainstay_[a-z]+(_[a-z]+)*$`).MatchString(name) {
			t.Errorf("%s: want small letters and underscores", name)
		}
		if (typ == "counter") != strings.HasSuffix(name, "_total") {
			t.Errorf("%s is a %s: want _total at the end of counters, and only there", name, typ)
		}
	}
}

func TestDocumentationHasEveryMetric(t *testing.T) {
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := make(map[string]string)
	for _, m := range regexp.MustCompile("(?m)^\\| `(mainstay_[a-z_]+)` \\| (counter|gauge|histogram) \\|").FindAllStringSubmatch(string(text), -1) {
		documented[m[1]] = m[2]
	}
	if want := everything(t); !maps.Equal(documented, want) {
		for name, typ := range want {
			if documented[name] != typ {
				t.Errorf("%s, a %s, is documented as %q", name, typ, documented[name])
			}
		}
		for name := range documented {
			if want[name] == "" {
				t.Errorf("%s is documented and does not exist", name)
			}
		}
	}
}

func TestDashboardAndAlertsAskForWhatThereIs(t *testing.T) {
	names := everything(t)
	for _, file := range []string{"../../deploy/grafana/mainstay.json", "../../deploy/prometheus/mainstay.rules.yml"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(file, ".json") && !json.Valid(text) {
			t.Errorf("%s is no JSON", file)
		}
		asked := regexp.MustCompile(`mainstay_[a-z_]+`).FindAllString(string(text), -1)
		if len(asked) < 8 {
			t.Errorf("%s asks for %d metrics only", file, len(asked))
		}
		slices.Sort(asked)
		for _, name := range slices.Compact(asked) {
			if names[name] == "" {
				t.Errorf("%s asks for %s, which does not exist", file, name)
			}
		}
	}
}

func TestFiguresOfAProcessAreRead(t *testing.T) {
	own := os.Getpid()
	if n := openFDs(own); n < 3 {
		t.Errorf("%d open descriptors", n)
	}
	deadline := time.Now().Add(10 * time.Second)
	for cpuSeconds(own) == 0 {
		if time.Now().After(deadline) {
			t.Fatal("no processor time is used by a process that is busy")
		}
	}
	if residentBytes(own) < 1<<20 {
		t.Errorf("%d bytes resident", residentBytes(own))
	}
	// No process has this number: pid_max is 4194304 at most.
	if openFDs(1<<23) != 0 || cpuSeconds(1<<23) != 0 || residentBytes(1<<23) != 0 {
		t.Error("figures of a process that is not there")
	}
}

type seatWords struct{ *scoreboard.Seat }

// count adds n to all that is counted, and opens n connections.
func (s *seatWords) count(n int) {
	for _, w := range []interface{ Add(uint64) uint64 }{
		&s.Accepts, &s.Messages, &s.BytesIn, &s.BytesOut, &s.SendFailures, &s.Panics, &s.Refused, &s.Datagrams, &s.GCCycles, &s.GCPauseNS,
		&s.HandoffsGiven, &s.HandoffsTaken, &s.HandoffsRefused, &s.HandoffsThawed,
	} {
		w.Add(uint64(n))
	}
	s.Connections.Store(int64(n))
}
