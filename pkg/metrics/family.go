package metrics

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Type is what a family's values mean.
type Type string

// The types, as Prometheus calls them.
const (
	TypeCounter   Type = "counter"   // only grows
	TypeGauge     Type = "gauge"     // goes up and down
	TypeHistogram Type = "histogram" // counts observations by their size
)

// Family is all figures of one name. It is plain data.
type Family struct {
	Name   string   `json:"name"`
	Help   string   `json:"help"`
	Type   Type     `json:"type"`
	Labels []string `json:"labels,omitempty"` // names
	Bounds []Number `json:"bounds,omitempty"` // of a histogram's buckets, ascending, +Inf left out
	Series []Series `json:"series"`
}

// Series is one figure of a family.
type Series struct {
	Values  []string `json:"values,omitempty"`  // of the family's labels
	Value   Number   `json:"value,omitempty"`   // of a counter or a gauge; a histogram's sum
	Buckets []uint64 `json:"buckets,omitempty"` // of a histogram: observations up to each bound and above the one before; the last is above all
}

// Number is a float64 that JSON can carry whatever it is.
type Number float64

// MarshalJSON writes a number, or a string for what is none in JSON.
func (n Number) MarshalJSON() ([]byte, error) {
	if f := float64(n); math.IsNaN(f) || math.IsInf(f, 0) {
		return json.Marshal(formatNumber(f))
	}
	return json.Marshal(float64(n))
}

// UnmarshalJSON reads what MarshalJSON writes.
func (n *Number) UnmarshalJSON(b []byte) error {
	f, err := strconv.ParseFloat(strings.Trim(string(b), `"`), 64)
	if err != nil {
		return fmt.Errorf("metrics: number %.40q", b)
	}
	*n = Number(f)
	return nil
}

// Decode reads families as Encode wrote them, in another process that may be
// of another version. It fails on what is no JSON, and on a family that could
// not be written.
func Decode(b []byte) ([]Family, error) {
	var families []Family
	if err := json.Unmarshal(b, &families); err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	for _, f := range families {
		if err := f.check(); err != nil {
			return nil, err
		}
	}
	return families, nil
}

// Encode writes families for Decode.
func Encode(families []Family) ([]byte, error) {
	b, err := json.Marshal(families)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return b, nil
}

// check says why a family cannot be written.
func (f *Family) check() error {
	if err := checkName(f.Name); err != nil {
		return err
	}
	switch f.Type {
	case TypeCounter, TypeGauge, TypeHistogram:
	default:
		return fmt.Errorf("metrics: %s: type %q", f.Name, f.Type)
	}
	if err := checkLabels(f.Name, f.Labels); err != nil {
		return err
	}
	if (f.Type == TypeHistogram) != (len(f.Bounds) > 0) {
		return fmt.Errorf("metrics: %s: a %s with %d bounds", f.Name, f.Type, len(f.Bounds))
	}
	if err := checkBounds(f.Name, f.Bounds); err != nil {
		return err
	}
	for _, s := range f.Series {
		if len(s.Values) != len(f.Labels) {
			return fmt.Errorf("metrics: %s: %d values for %d labels", f.Name, len(s.Values), len(f.Labels))
		}
		if f.Type == TypeHistogram && len(s.Buckets) != len(f.Bounds)+1 {
			return fmt.Errorf("metrics: %s: %d buckets for %d bounds", f.Name, len(s.Buckets), len(f.Bounds))
		}
	}
	return nil
}

// Labelled returns f with labels put before its own; pairs are their names
// and values in turn.
func (f Family) Labelled(pairs ...string) Family {
	var names, values []string
	for i := 0; i+1 < len(pairs); i += 2 {
		names, values = append(names, pairs[i]), append(values, pairs[i+1])
	}
	f.Labels = slices.Concat(names, f.Labels)
	series := make([]Series, len(f.Series))
	for i, s := range f.Series {
		s.Values = slices.Concat(values, s.Values)
		series[i] = s
	}
	f.Series = series
	return f
}

// Set is the sum of families. The zero value is empty. It is not for use by
// several goroutines at a time.
type Set struct {
	byName map[string]*summed
}

type summed struct {
	Family
	index map[string]int // by values
}

// Add adds a family: series with the same values of labels become their sum.
// It returns false and changes nothing if the set has a family of that name
// that differs in type, labels or bounds. f stays the caller's.
func (s *Set) Add(f Family) bool {
	if s.byName == nil {
		s.byName = make(map[string]*summed)
	}
	sum := s.byName[f.Name]
	switch {
	case sum == nil:
		sum = &summed{Family: f, index: make(map[string]int, len(f.Series))}
		sum.Series = nil
		s.byName[f.Name] = sum
	case sum.Type != f.Type || !slices.Equal(sum.Labels, f.Labels) || !slices.Equal(sum.Bounds, f.Bounds):
		return false
	}
	for _, one := range f.Series {
		key := strings.Join(one.Values, "\xff")
		i, ok := sum.index[key]
		if !ok {
			sum.index[key] = len(sum.Series)
			one.Buckets = slices.Clone(one.Buckets)
			sum.Series = append(sum.Series, one)
			continue
		}
		to := &sum.Series[i]
		to.Value += one.Value
		for b := range to.Buckets {
			to.Buckets[b] += one.Buckets[b]
		}
	}
	return true
}

// Remove takes the family of that name out of the set.
func (s *Set) Remove(name string) { delete(s.byName, name) }

// Families returns the sums, by name; the series are ordered by their
// values. They share memory with the set until it is added to.
func (s *Set) Families() []Family {
	families := make([]Family, 0, len(s.byName))
	for _, sum := range s.byName {
		f := sum.Family
		f.Series = slices.SortedFunc(slices.Values(f.Series), func(a, b Series) int { return slices.Compare(a.Values, b.Values) })
		families = append(families, f)
	}
	slices.SortFunc(families, func(a, b Family) int { return strings.Compare(a.Name, b.Name) })
	return families
}

func formatNumber(f float64) string {
	switch {
	case math.IsNaN(f):
		return "NaN"
	case math.IsInf(f, 1):
		return "+Inf"
	case math.IsInf(f, -1):
		return "-Inf"
	case f == math.Trunc(f) && math.Abs(f) < 1<<53:
		return strconv.FormatInt(int64(f), 10)
	}
	return strconv.FormatFloat(f, 'g', -1, 64)
}
