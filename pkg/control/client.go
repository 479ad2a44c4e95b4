package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"syscall"
)

// ErrNotRunning is matched by the errors of a Client whose socket is absent
// or answers no more, and of one whose supervisor has died before its answer was
// complete.
var ErrNotRunning = errors.New("service not running")

// maxAnswer bounds what a Client reads of an answer, in bytes.
const maxAnswer = 16 << 20

// Client asks a Server. Its methods may be called from any goroutine. Every
// error but a refusal of the server's names the socket.
type Client struct {
	path string
	http *http.Client
}

// NewClient returns a client for the socket at address, a URL unix:///path.
// It fails if address is no such URL; it does not connect yet.
func NewClient(address string) (*Client, error) {
	path, err := socketPath(address)
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return dialAlive(ctx, path) }
	return &Client{
		path: path,
		http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}},
	}, nil
}

// Address is the URL that the client was made for.
func (c *Client) Address() string { return "unix://" + c.path }

// Status asks how the service is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var st Status
	err := c.call(ctx, http.MethodGet, "/v1/status", nil, &st)
	return st, err
}

// Examine asks how the supervisor's process stands.
func (c *Client) Examine(ctx context.Context) (Examination, error) {
	var x Examination
	err := c.call(ctx, http.MethodGet, "/v1/examine", nil, &x)
	return x, err
}

// Metrics asks for the page of metrics, in Prometheus' text format.
func (c *Client) Metrics(ctx context.Context) ([]byte, error) {
	body, err := c.do(ctx, http.MethodGet, "/metrics", nil)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("control: %s: metrics: %w", c.path, err)
	}
	return text, nil
}

// Scale sets the number of workers of a pool.
func (c *Client) Scale(ctx context.Context, r ScaleRequest) (Done, error) {
	var d Done
	err := c.call(ctx, http.MethodPost, "/v1/scale", r, &d)
	return d, err
}

// Recycle replaces a slot's worker by a new one of the same generation, and
// waits until that serves.
func (c *Client) Recycle(ctx context.Context, r SlotRequest) (Done, error) {
	return c.slot(ctx, "/v1/recycle", r)
}

// Drain takes a slot out of service.
func (c *Client) Drain(ctx context.Context, r SlotRequest) (Done, error) {
	return c.slot(ctx, "/v1/drain", r)
}

// Resume fills a slot that was drained.
func (c *Client) Resume(ctx context.Context, r SlotRequest) (Done, error) {
	return c.slot(ctx, "/v1/resume", r)
}

func (c *Client) slot(ctx context.Context, path string, r SlotRequest) (Done, error) {
	var d Done
	err := c.call(ctx, http.MethodPost, path, r, &d)
	return d, err
}

// Connections lists connections of the workers.
func (c *Client) Connections(ctx context.Context, r ConnectionsRequest) (Connections, error) {
	q := url.Values{}
	for _, f := range []struct{ key, value string }{{"listener", r.Listener}, {"peer", r.Peer}, {"sort", r.Sort}} {
		if f.value != "" {
			q.Set(f.key, f.value)
		}
	}
	if r.Limit != 0 {
		q.Set("limit", strconv.Itoa(r.Limit))
	}
	var all Connections
	err := c.call(ctx, http.MethodGet, "/v1/connections?"+q.Encode(), nil, &all)
	return all, err
}

// Events passes on the events that the supervisor remembers and, with follow,
// those that happen, until ctx ends; that, and the end of the service, is no
// error then.
func (c *Client) Events(ctx context.Context, follow bool, tell func(Event)) error {
	body, err := c.do(ctx, http.MethodGet, fmt.Sprintf("%s?follow=%t", eventsPath, follow), nil)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer body.Close()
	d := json.NewDecoder(body)
	for {
		var line struct {
			Event
			Problem
		}
		switch err := d.Decode(&line); {
		case errors.Is(err, io.EOF), err != nil && ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("control: %s: events: %w", c.path, err)
		case line.Error != "":
			return errors.New(line.Error)
		}
		tell(line.Event)
	}
}

// Stop begins the end of the service.
func (c *Client) Stop(ctx context.Context) (Done, error) {
	var d Done
	err := c.call(ctx, http.MethodPost, "/v1/stop", struct{}{}, &d)
	return d, err
}

// Reload runs a reload and passes its steps on to step as they come. It
// returns nil when the new generation serves, otherwise the reason why it
// does not.
func (c *Client) Reload(ctx context.Context, r ReloadRequest, step func(string)) error {
	return c.follow(ctx, "/v1/reload", r, step)
}

// Rollback returns to the last good release and passes its steps on to step as
// they come. It returns nil when that serves, otherwise the reason why it does
// not, or that there is none.
func (c *Client) Rollback(ctx context.Context, step func(string)) error {
	return c.follow(ctx, "/v1/rollback", struct{}{}, step)
}

// follow asks for something that lasts.
func (c *Client) follow(ctx context.Context, path string, r any, step func(string)) error {
	body, err := c.do(ctx, http.MethodPost, path, r)
	if err != nil {
		return err
	}
	defer body.Close()
	d := json.NewDecoder(io.LimitReader(body, maxAnswer))
	for {
		var p Progress
		if err := d.Decode(&p); err != nil {
			return fmt.Errorf("control: %s: %s: the supervisor ended before its verdict: %w", c.path, path, err)
		}
		switch {
		case !p.Done:
			step(p.Message)
		case p.OK:
			return nil
		default:
			return errors.New(p.Message)
		}
	}
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	body, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(out); err != nil {
		return fmt.Errorf("control: %s: %s: %w", c.path, path, err)
	}
	return nil
}

func (c *Client) do(ctx context.Context, method, path string, in any) (io.ReadCloser, error) {
	var payload io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("control: %s: %w", path, err)
		}
		payload = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://control"+path, payload)
	if err != nil {
		return nil, fmt.Errorf("control: %s: %w", path, err)
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w: no one listens on %s", ErrNotRunning, c.path)
	case errors.Is(err, errDead):
		return nil, fmt.Errorf("%w, which listened on %s", errDead, c.path)
	case err != nil:
		return nil, fmt.Errorf("control: %s: %w", c.path, err)
	}
	if resp.StatusCode >= 400 {
		defer resp.Body.Close()
		var p Problem
		if err := json.NewDecoder(io.LimitReader(resp.Body, MaxRequest)).Decode(&p); err != nil || p.Error == "" {
			return nil, fmt.Errorf("control: %s: %s: %s", c.path, path, resp.Status)
		}
		return nil, errors.New(p.Error)
	}
	return resp.Body, nil
}
