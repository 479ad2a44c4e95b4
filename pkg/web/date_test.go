package web

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/mainstay-go/mainstay/pkg/wire/http1"
)

func TestTheDateIsThatOfTheSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New(Config{})
		for range 50 {
			want := string(http1.AppendDate(nil, time.Now()))
			if got := string(h.appendDate(nil, h.clock())); got != want {
				t.Fatalf("%v after the start %q, want %q", h.clock(), got, want)
			}
			<-time.After(170 * time.Millisecond)
		}
	})
}
