package warden

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
	"strings"

	"lifeboat/lab/wan"
)

// Client sends requests to the warden of a laboratory. It is safe for concurrent use.
type Client struct {
	http *http.Client
}

// NewClient makes a client for the laboratory; nothing is sent yet.
func NewClient(conf Config) *Client {
	socket := conf.Socket()
	return &Client{&http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}}
}

// Boot switches a site on without starting its engine.
func (c *Client) Boot(ctx context.Context, site string) error { return c.site(ctx, site, "boot") }

// Start switches a site on if it is off and starts its engine; it returns when the engine answers.
func (c *Client) Start(ctx context.Context, site string) error { return c.site(ctx, site, "start") }

// StopEngine stops the engine of a site and its containers in good order; the site stays on.
func (c *Client) StopEngine(ctx context.Context, site string) error {
	return c.site(ctx, site, "stop-engine")
}

// Crash kills every process of a site; its disk stays.
func (c *Client) Crash(ctx context.Context, site string) error { return c.site(ctx, site, "crash") }

// Destroy crashes a site and wipes its disk.
func (c *Client) Destroy(ctx context.Context, site string) error {
	return c.site(ctx, site, "destroy")
}

func (c *Client) site(ctx context.Context, site, verb string) error {
	return c.do(ctx, http.MethodPost, "/sites/"+url.PathEscape(site)+"/"+verb, nil, nil)
}

// SetWAN changes the wire.
func (c *Client) SetWAN(ctx context.Context, p wan.Params) error {
	return c.do(ctx, http.MethodPost, "/wan", p, nil)
}

// Cut cuts the links of the sites, without any those of all.
func (c *Client) Cut(ctx context.Context, sites ...string) error {
	return c.do(ctx, http.MethodPost, "/cut?"+url.Values{"site": sites}.Encode(), nil, nil)
}

// Heal ends the cuts of the sites, without any all cuts.
func (c *Client) Heal(ctx context.Context, sites ...string) error {
	return c.do(ctx, http.MethodPost, "/heal?"+url.Values{"site": sites}.Encode(), nil, nil)
}

// Status tells the state of everything.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.do(ctx, http.MethodGet, "/status", nil, &s)
	return s, err
}

// Close takes the laboratory away. When it returns without error only the warden process itself is
// left, about to end.
func (c *Client) Close(ctx context.Context) error {
	return c.do(ctx, http.MethodPost, "/close", nil, nil)
}

func (c *Client) do(ctx context.Context, method, path string, body, result any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("ask the laboratory's warden: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://warden"+path, bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("ask the laboratory's warden: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("ask the laboratory's warden (is the laboratory up?): %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
		if err != nil {
			return fmt.Errorf("read the warden's answer: %w", err)
		}
		return errors.New(strings.TrimSpace(string(text)))
	}
	if result == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(result); err != nil {
		return fmt.Errorf("read the warden's answer: %w", err)
	}
	return nil
}
