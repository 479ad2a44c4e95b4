package metrics

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
)

// MaxSeries is how many series a family may have in one process.
const MaxSeries = 1000

// Registry is where the figures of a process are made and gathered. Its
// methods may be called from any goroutine.
type Registry struct {
	mu       sync.Mutex
	families map[string]*family
}

// NewRegistry returns an empty registry.
func NewRegistry() *Registry { return &Registry{families: make(map[string]*family)} }

// family is the part of a figure that does not depend on its type.
type family struct {
	Family

	mu       sync.RWMutex
	children map[string]*child
	other    *child // stands for those beyond MaxSeries
}

type child struct {
	values []string
	read   func() Series
	figure any
}

// Reserved is what the framework's own names begin with.
const Reserved = "mainstay_"

var validName = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)

// ownLabels are given to every series of a worker's by the supervisor, or
// mean something else to Prometheus.
var ownLabels = []string{"pool", "worker", "le", "quantile"}

func checkName(name string) error {
	if !validName.MatchString(name) || len(name) > 200 {
		return fmt.Errorf("metrics: name %.80q, want up to 200 letters, digits and underscores, no digit in front", name)
	}
	return nil
}

func checkLabels(name string, labels []string) error {
	for i, l := range labels {
		switch {
		case !validName.MatchString(l) || len(l) > 200 || strings.HasPrefix(l, "__"):
			return fmt.Errorf("metrics: %s: label %.80q, want letters, digits and underscores, no digit and not two underscores in front", name, l)
		case slices.Contains(ownLabels, l):
			return fmt.Errorf("metrics: %s: label %q has a meaning of its own", name, l)
		case slices.Contains(labels[:i], l):
			return fmt.Errorf("metrics: %s: label %q twice", name, l)
		}
	}
	return nil
}

func checkBounds(name string, bounds []Number) error {
	for i, b := range bounds {
		if math.IsNaN(float64(b)) || math.IsInf(float64(b), 0) || i > 0 && b <= bounds[i-1] {
			return fmt.Errorf("metrics: %s: bounds %v, want finite numbers in ascending order", name, bounds)
		}
	}
	return nil
}

// add registers a family, or panics.
func (r *Registry) add(f Family) *family {
	if err := f.check(); err != nil {
		panic(err.Error())
	}
	if f.Type == TypeCounter && !strings.HasSuffix(f.Name, "_total") {
		panic(fmt.Sprintf("metrics: counter %s: want a name that ends with _total", f.Name))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.families[f.Name] != nil {
		panic(fmt.Sprintf("metrics: %s is made twice", f.Name))
	}
	made := &family{Family: f, children: make(map[string]*child)}
	r.families[f.Name] = made
	return made
}

// with returns the figure for values, which make makes when it is new.
func with[T any](f *family, values []string, make func() (*T, func() Series)) *T {
	if len(values) != len(f.Labels) {
		panic(fmt.Sprintf("metrics: %s: %d values for its %d labels", f.Name, len(values), len(f.Labels)))
	}
	key := strings.Join(values, "\xff")
	f.mu.RLock()
	c := f.children[key]
	f.mu.RUnlock()
	if c != nil {
		return c.figure.(*T)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.children[key]; c != nil {
		return c.figure.(*T)
	}
	if len(f.children) >= MaxSeries {
		if f.other == nil {
			figure, read := make()
			f.other = &child{values: slices.Repeat([]string{"other"}, len(values)), figure: figure, read: read}
		}
		return f.other.figure.(*T)
	}
	figure, read := make()
	f.children[key] = &child{values: slices.Clone(values), figure: figure, read: read}
	return figure
}

// Gather returns all figures as they are now, by name. Those that are
// counted meanwhile may or may not be in it.
func (r *Registry) Gather() []Family {
	r.mu.Lock()
	all := make([]*family, 0, len(r.families))
	for _, f := range r.families {
		all = append(all, f)
	}
	r.mu.Unlock()
	var set Set // which sums an "other" that somebody has counted by that name
	for _, f := range all {
		f.mu.RLock()
		children := make([]*child, 0, len(f.children)+1)
		for _, c := range f.children {
			children = append(children, c)
		}
		if f.other != nil {
			children = append(children, f.other)
		}
		f.mu.RUnlock()
		gathered := f.Family
		gathered.Series = nil
		for _, c := range children {
			s := c.read()
			s.Values = c.values
			gathered.Series = append(gathered.Series, s)
		}
		set.Add(gathered)
	}
	return set.Families()
}

// number is a float64 that is added to from several goroutines.
type number struct{ bits atomic.Uint64 }

func (n *number) add(by float64) {
	for {
		old := n.bits.Load()
		if n.bits.CompareAndSwap(old, math.Float64bits(math.Float64frombits(old)+by)) {
			return
		}
	}
}

func (n *number) set(v float64) { n.bits.Store(math.Float64bits(v)) }
func (n *number) get() float64  { return math.Float64frombits(n.bits.Load()) }

func (n *number) series() Series { return Series{Value: Number(n.get())} }

// Counter is a figure that only grows. Its methods may be called from any
// goroutine.
type Counter struct{ n number }

// Inc adds one.
func (c *Counter) Inc() { c.n.add(1) }

// Add adds n, which must not be negative or NaN: it panics then.
func (c *Counter) Add(n float64) {
	if !(n >= 0) {
		panic(fmt.Sprintf("metrics: a counter that %v is added to", n))
	}
	c.n.add(n)
}

// Value returns the count.
func (c *Counter) Value() float64 { return c.n.get() }

func newCounter() (*Counter, func() Series) {
	c := new(Counter)
	return c, c.n.series
}

// CounterVec is a counter with labels.
type CounterVec struct{ family *family }

// With returns the counter for these values of the labels, in their order. It
// panics if there are more or fewer. Keeping the counter saves looking it up.
func (v *CounterVec) With(values ...string) *Counter { return with(v.family, values, newCounter) }

// CounterVec makes a counter with labels; the rest is as with Counter.
func (r *Registry) CounterVec(name, help string, labels ...string) *CounterVec {
	r.refuseReserved(name)
	return &CounterVec{r.add(Family{Name: name, Help: help, Type: TypeCounter, Labels: labels})}
}

// Counter makes a counter. Its name ends with _total; help says what is
// counted. It panics if the name is not valid, the framework's (Reserved), or
// taken.
func (r *Registry) Counter(name, help string) *Counter { return r.CounterVec(name, help).With() }

// Gauge is a figure that goes up and down. Its methods may be called from
// any goroutine.
type Gauge struct{ n number }

// Set makes it v.
func (g *Gauge) Set(v float64) { g.n.set(v) }

// Add adds v, which may be negative.
func (g *Gauge) Add(v float64) { g.n.add(v) }

// Value returns the figure.
func (g *Gauge) Value() float64 { return g.n.get() }

func newGauge() (*Gauge, func() Series) {
	g := new(Gauge)
	return g, g.n.series
}

// GaugeVec is a gauge with labels.
type GaugeVec struct{ family *family }

// With returns the gauge for these values of the labels, as CounterVec.With.
func (v *GaugeVec) With(values ...string) *Gauge { return with(v.family, values, newGauge) }

// GaugeVec makes a gauge with labels; the rest is as with Gauge.
func (r *Registry) GaugeVec(name, help string, labels ...string) *GaugeVec {
	r.refuseReserved(name)
	return &GaugeVec{r.add(Family{Name: name, Help: help, Type: TypeGauge, Labels: labels})}
}

// Gauge makes a gauge. It panics as Counter does, but for the end of the
// name.
func (r *Registry) Gauge(name, help string) *Gauge { return r.GaugeVec(name, help).With() }

// GaugeFunc makes a gauge whose figure f tells when it is gathered, from any
// goroutine and soon. The rest is as with Gauge.
func (r *Registry) GaugeFunc(name, help string, f func() float64) {
	r.refuseReserved(name)
	r.function(Family{Name: name, Help: help, Type: TypeGauge}, f)
}

// CounterFunc makes a counter whose figure f tells when it is gathered, from
// any goroutine and soon; it must never go back. The rest is as with Counter.
func (r *Registry) CounterFunc(name, help string, f func() float64) {
	r.refuseReserved(name)
	r.function(Family{Name: name, Help: help, Type: TypeCounter}, f)
}

// Own makes a counter of the framework's own, whose name begins with
// Reserved; the rest is as with CounterFunc.
func (r *Registry) Own(name, help string, f func() float64) {
	r.function(Family{Name: name, Help: help, Type: TypeCounter}, f)
}

// OwnGauge makes a gauge of the framework's own, whose name begins with
// Reserved; the rest is as with GaugeVec.
func (r *Registry) OwnGauge(name, help string, labels ...string) *GaugeVec {
	return &GaugeVec{r.add(Family{Name: name, Help: help, Type: TypeGauge, Labels: labels})}
}

func (r *Registry) function(family Family, f func() float64) {
	with(r.add(family), nil, func() (*struct{}, func() Series) {
		return nil, func() Series { return Series{Value: Number(f())} }
	})
}

func (r *Registry) refuseReserved(name string) {
	if strings.HasPrefix(name, Reserved) {
		panic(fmt.Sprintf("metrics: %s: names that begin with %s are the framework's own", name, Reserved))
	}
}

// Histogram counts observations by their size. Its methods may be called
// from any goroutine.
type Histogram struct {
	bounds  []float64
	buckets []atomic.Uint64
	sum     number
}

// Observe counts one observation of v. NaN is left out.
func (h *Histogram) Observe(v float64) {
	if math.IsNaN(v) {
		return
	}
	h.buckets[sort.SearchFloat64s(h.bounds, v)].Add(1)
	h.sum.add(v)
}

func (h *Histogram) series() Series {
	s := Series{Value: Number(h.sum.get()), Buckets: make([]uint64, len(h.buckets))}
	for i := range h.buckets {
		s.Buckets[i] = h.buckets[i].Load()
	}
	return s
}

// HistogramVec is a histogram with labels.
type HistogramVec struct {
	family *family
	bounds []float64
}

// With returns the histogram for these values of the labels, as
// CounterVec.With.
func (v *HistogramVec) With(values ...string) *Histogram {
	return with(v.family, values, func() (*Histogram, func() Series) {
		h := &Histogram{bounds: v.bounds, buckets: make([]atomic.Uint64, len(v.bounds)+1)}
		return h, h.series
	})
}

// Seconds are bounds for durations in seconds, from a millisecond to ten
// seconds.
var Seconds = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// HistogramVec makes a histogram with labels; the rest is as with Histogram.
func (r *Registry) HistogramVec(name, help string, bounds []float64, labels ...string) *HistogramVec {
	r.refuseReserved(name)
	if bounds == nil {
		bounds = Seconds
	}
	numbers := make([]Number, len(bounds))
	for i, b := range bounds {
		numbers[i] = Number(b)
	}
	f := r.add(Family{Name: name, Help: help, Type: TypeHistogram, Labels: labels, Bounds: numbers})
	return &HistogramVec{family: f, bounds: slices.Clone(bounds)}
}

// Histogram makes a histogram. bounds are the upper ends of its buckets,
// ascending and finite; nil: Seconds. It panics as Gauge does, and if the
// bounds are none.
func (r *Registry) Histogram(name, help string, bounds []float64) *Histogram {
	return r.HistogramVec(name, help, bounds).With()
}
