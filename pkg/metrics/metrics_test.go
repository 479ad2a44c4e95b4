package metrics

import (
	"bytes"
	"fmt"
	"math"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// samples reads a text as Prometheus does: a line's name and labels to its
// value.
func samples(t *testing.T, text []byte) map[string]float64 {
	t.Helper()
	p := expfmt.NewTextParser(model.LegacyValidation)
	families, err := p.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	got := make(map[string]float64)
	for name, f := range families {
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			key := name + "{" + strings.Join(labels, ",") + "}"
			switch {
			case m.Counter != nil:
				got[key] = m.Counter.GetValue()
			case m.Gauge != nil:
				got[key] = m.Gauge.GetValue()
			case m.Histogram != nil:
				got[key+" sum"] = m.Histogram.GetSampleSum()
				got[key+" count"] = float64(m.Histogram.GetSampleCount())
				for _, b := range m.Histogram.Bucket {
					got[fmt.Sprintf("%s le %v", key, b.GetUpperBound())] = float64(b.GetCumulativeCount())
				}
			}
		}
	}
	return got
}

func TestWhatIsCountedIsWhatPrometheusReads(t *testing.T) {
	r := NewRegistry()
	r.Counter("lines_total", "Lines.\nTwo of them, C:\\.").Add(3)
	byRoom := r.CounterVec("messages_total", "Messages.", "room", "kind")
	byRoom.With("a \"b\"\n\\", "x").Inc()
	byRoom.With("a \"b\"\n\\", "x").Inc()
	byRoom.With("\xff", "y").Inc()
	g := r.Gauge("sessions", "Sessions.")
	g.Set(5)
	g.Add(-2.5)
	r.GaugeFunc("broken", "Not a number.", func() float64 { return math.Inf(-1) })
	r.CounterFunc("calls_total", "Calls.", func() float64 { return 1 << 60 })
	h := r.Histogram("took_seconds", "Time.", []float64{0.1, 1})
	for _, v := range []float64{0.05, 0.1, 0.5, 7, math.NaN()} {
		h.Observe(v)
	}
	got := samples(t, Append(nil, r.Gather()))
	want := map[string]float64{
		"lines_total{}": 3,
		`messages_total{room="a \"b\"\n\\",kind="x"}`:      2,
		`messages_total{room="` + "\uFFFD" + `",kind="y"}`: 1,
		"sessions{}":             2.5,
		"broken{}":               math.Inf(-1),
		"calls_total{}":          1 << 60,
		"took_seconds{} sum":     7.65,
		"took_seconds{} count":   4,
		"took_seconds{} le 0.1":  2,
		"took_seconds{} le 1":    3,
		"took_seconds{} le +Inf": 4,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

func TestFamiliesTravelWhole(t *testing.T) {
	r := NewRegistry()
	r.GaugeFunc("odd", "Odd.", func() float64 { return math.Inf(1) })
	r.CounterVec("a_total", "A.", "x").With("1").Add(0.1)
	r.HistogramVec("h", "H.", nil, "x").With("1").Observe(3)
	want := r.Gather()
	b, err := Encode(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
}

func TestSumsOfSeveralProcesses(t *testing.T) {
	gather := func(n float64) []Family {
		r := NewRegistry()
		r.CounterVec("a_total", "A.", "x").With("1").Add(n)
		r.Histogram("h", "H.", []float64{1, 10}).Observe(n)
		return r.Gather()
	}
	var set Set
	for i, n := range []float64{0.5, 5} {
		for _, f := range gather(n) {
			if !set.Add(f.Labelled("pool", "p", "worker", "0")) {
				t.Errorf("process %d: %s is not added", i, f.Name)
			}
		}
	}
	for _, f := range gather(50) {
		set.Add(f.Labelled("pool", "p", "worker", "1"))
	}
	got := samples(t, Append(nil, set.Families()))
	for key, want := range map[string]float64{
		`a_total{pool="p",worker="0",x="1"}`: 5.5,
		`a_total{pool="p",worker="1",x="1"}`: 50,
		`h{pool="p",worker="0"} sum`:         5.5,
		`h{pool="p",worker="0"} le 1`:        1,
		`h{pool="p",worker="0"} count`:       2,
		`h{pool="p",worker="1"} le 10`:       0,
	} {
		if got[key] != want {
			t.Errorf("%s is %v, want %v", key, got[key], want)
		}
	}
}

func TestFamiliesThatDifferAreNotMixed(t *testing.T) {
	base := Family{Name: "a", Type: TypeHistogram, Bounds: []Number{1}, Series: []Series{{Buckets: []uint64{1, 0}}}}
	for _, tt := range []struct {
		name  string
		other Family
	}{
		{"type", Family{Name: "a", Type: TypeGauge}},
		{"labels", Family{Name: "a", Type: TypeHistogram, Bounds: base.Bounds, Labels: []string{"x"}}},
		{"bounds", Family{Name: "a", Type: TypeHistogram, Bounds: []Number{2}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var set Set
			if !set.Add(base) || set.Add(tt.other) {
				t.Fatal("mixed")
			}
			if got := set.Families(); len(got) != 1 || !reflect.DeepEqual(got[0].Series, base.Series) {
				t.Errorf("got %+v", got)
			}
			set.Remove("a")
			if !set.Add(tt.other) {
				t.Error("refused after the other was removed")
			}
		})
	}
}

func TestNamesThatCannotBeArePanics(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(r *Registry)
		want string
	}{
		{"no name", func(r *Registry) { r.Gauge("", "") }, "name"},
		{"digit", func(r *Registry) { r.Gauge("1a", "") }, "name"},
		{"counter without _total", func(r *Registry) { r.Counter("a", "") }, "_total"},
		{"ours", func(r *Registry) { r.Counter("mainstay_a_total", "") }, "framework's own"},
		{"twice", func(r *Registry) { r.Gauge("a", ""); r.Gauge("a", "") }, "twice"},
		{"our label", func(r *Registry) { r.GaugeVec("a", "", "worker") }, "meaning of its own"},
		{"label of Prometheus' own", func(r *Registry) { r.GaugeVec("a", "", "__name__") }, "label"},
		{"label twice", func(r *Registry) { r.GaugeVec("a", "", "x", "x") }, "twice"},
		{"bounds", func(r *Registry) { r.Histogram("a", "", []float64{2, 1}) }, "ascending"},
		{"no bounds", func(r *Registry) { r.Histogram("a", "", []float64{}) }, "0 bounds"},
		{"values", func(r *Registry) { r.GaugeVec("a", "", "x").With() }, "0 values"},
		{"counter that goes back", func(r *Registry) { r.Counter("a_total", "").Add(-1) }, "-1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			defer func() {
				if got := fmt.Sprint(recover()); !strings.Contains(got, tt.want) {
					t.Errorf("panic %q, want %q in it", got, tt.want)
				}
			}()
			tt.make(NewRegistry())
		})
	}
}

func TestSeriesAreBoundedWhateverPeersSay(t *testing.T) {
	r := NewRegistry()
	v := r.CounterVec("a_total", "A.", "peer")
	for i := range 3 * MaxSeries {
		v.With(fmt.Sprint(i)).Inc()
	}
	got := r.Gather()[0].Series
	if len(got) != MaxSeries+1 {
		t.Errorf("%d series, want %d", len(got), MaxSeries+1)
	}
	var sum Number
	for _, s := range got {
		sum += s.Value
	}
	if sum != 3*MaxSeries {
		t.Errorf("%v counted, want %d", sum, 3*MaxSeries)
	}
}

func TestFiguresAreCountedFromManyGoroutines(t *testing.T) {
	r := NewRegistry()
	c, h := r.CounterVec("a_total", "A.", "x"), r.Histogram("h", "H.", []float64{1})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 1000 {
				c.With(fmt.Sprint(i % 2)).Inc()
				h.Observe(1)
				r.Gather()
			}
		})
	}
	wg.Wait()
	got := samples(t, Append(nil, r.Gather()))
	if got[`a_total{x="0"}`] != 4000 || got["h{} sum"] != 8000 || got["h{} count"] != 8000 {
		t.Errorf("got %v", got)
	}
}

func FuzzDecode(f *testing.F) {
	r := NewRegistry()
	r.CounterVec("a_total", "A.", "x").With("1").Inc()
	r.Histogram("h", "H.", nil).Observe(1)
	r.GaugeFunc("g", "G.", func() float64 { return math.NaN() })
	b, err := Encode(r.Gather())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`[{"name":"a","type":"histogram","bounds":[1,2],"series":[{"buckets":[1]}]}]`))
	f.Add([]byte(`[{"name":"a","type":"gauge","labels":["x"],"series":[{"value":"+Inf","values":["\n"]}]}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		families, err := Decode(b)
		if err != nil {
			return
		}
		var set Set
		for range 2 {
			for _, f := range families {
				set.Add(f.Labelled("pool", "p"))
			}
		}
		samples(t, Append(nil, set.Families()))
	})
}
