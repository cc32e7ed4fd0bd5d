package main

import (
	"context"
	"fmt"
	"time"

	"lifeboat/lab"
	"lifeboat/lab/systems"
)

// ackWait is how long the story waits for visitors to get their answers.
const ackWait = 2 * time.Minute

// visitors write entries at one site. A nil one is nobody.
type visitors struct {
	load *systems.Load
	site *lab.Site
}

// visit begins to write entries at a site, from the number first on, until stop; what fails is not tried
// again.
func visit(ctx context.Context, sys *systems.System, site *lab.Site, first int64) (*visitors, error) {
	load, err := sys.StartLoad(context.WithoutCancel(ctx), site, systems.LoadOptions{Writers: 2, First: first, Every: 50 * time.Millisecond})
	if err != nil {
		return nil, err
	}
	return &visitors{load, site}, nil
}

// await returns when n more entries were acknowledged.
func (v *visitors) await(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, ackWait)
	defer cancel()
	if err := v.load.Await(ctx, n); err != nil {
		return fmt.Errorf("visitors at %s: %w", v.site.Name, err)
	}
	return nil
}

// stop ends the load and returns all that was acknowledged; it may be called again.
func (v *visitors) stop() []systems.Ack {
	if v == nil {
		return nil
	}
	return v.load.Stop()
}

func (v *visitors) acks() []systems.Ack {
	if v == nil {
		return nil
	}
	return v.load.Acks()
}

func (v *visitors) failed() (int, error) { return v.load.Failed() }
