package report

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAMarkIsMetUpToItself(t *testing.T) {
	for _, tt := range []struct {
		got, most float64
		want      string
	}{
		{1.5, 1.5, "p99.9: 1.5, mark 1.5: met"},
		{1.5001, 1.5, "p99.9: 1.5, mark 1.5: MISSED"},
		{0, 0, "p99.9: 0, mark 0: met"},
		{543.21, 512, "p99.9: 543.2, mark 512: MISSED"},
	} {
		if got := NewMark("p99.9", tt.got, tt.most).String(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

func TestFiguresAreWrittenWhereTheyAreWanted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "out.json")
	v := []Mark{NewMark("a", 1, 2)}
	const want = `"mark": 2`
	var out bytes.Buffer
	if err := Write(v, "", &out); err != nil || out.Len() > 0 {
		t.Errorf("without a file: %v, %q", err, &out)
	}
	if err := Write(v, "-", &out); err != nil || !strings.Contains(out.String(), want) {
		t.Errorf("standard output: %v, %q", err, &out)
	}
	if err := Write(v, file, io.Discard); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(file); err != nil || !bytes.Equal(b, out.Bytes()) {
		t.Errorf("the file has %q, %v, want %q", b, err, &out)
	}
	if err := Write(v, "/nonexistent/file", io.Discard); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "--json /nonexistent/file") {
		t.Errorf("got %v, want an error that names the flag and the file", err)
	}
	if Tables("-", &out) != io.Discard || Tables(file, &out) != io.Writer(&out) {
		t.Error("tables go to standard output unless the figures do")
	}
	if m := ThisMachine().String(); !strings.Contains(m, "Linux") {
		t.Errorf("machine %q", m)
	}
}
