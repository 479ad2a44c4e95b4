package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// patience bounds a question.
const patience = 10 * time.Second

// answer is what we look at of a status.
type answer struct {
	State     string `json:"state"`
	Listeners []struct {
		Address string `json:"address"`
	} `json:"listeners"`
	Pools []struct {
		Workers []struct {
			PID int `json:"pid"`
		} `json:"workers"`
	} `json:"pools"`
}

// ask asks once, by a connection of its own.
func ask(ctx context.Context, socket string) (answer, error) {
	var a answer
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://control/v1/status", nil)
	if err != nil {
		return a, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return a, fmt.Errorf("status: %s", resp.Status)
	}
	return a, json.NewDecoder(resp.Body).Decode(&a)
}

// round has all callers ask at the same moment, once each.
func (r *row) round(ctx context.Context, socket string, counted bool) {
	type outcome struct {
		took time.Duration
		err  error
	}
	outcomes := make([]outcome, r.Callers)
	together := make(chan struct{})
	var all sync.WaitGroup
	for i := range outcomes {
		all.Go(func() {
			<-together
			began := time.Now()
			_, err := ask(ctx, socket)
			outcomes[i] = outcome{time.Since(began), err}
		})
	}
	close(together)
	all.Wait()
	if !counted {
		return
	}
	for _, o := range outcomes {
		if o.err != nil {
			r.Errors++
			if r.First == "" {
				r.First = o.err.Error()
			}
			continue
		}
		r.took.Record(o.took)
	}
}
