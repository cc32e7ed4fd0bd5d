package recover

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/site"
)

// wantsRunning tells whether a container was up when it was captured.
func wantsRunning(c dr.Container) bool {
	return c.State == "running" || c.State == "restarting" || c.State == "paused"
}

// start starts what was running, in dependency order, each one gated by the
// conditions of what it depends on, and waits for all to be healthy. A tree
// that is marked as half written is never served (ADR 5).
func (b *bringUp) start(ctx context.Context) error {
	marked, err := b.d.State.Marked(b.o.System)
	if err != nil {
		return err
	}
	if len(marked) > 0 {
		return fmt.Errorf("nothing is started: %w", &site.HalfWrittenError{System: b.o.System, Trees: marked})
	}
	running := map[string]bool{}
	for _, c := range b.local.Containers {
		running[c.Name] = wantsRunning(c)
	}
	for _, c := range startOrder(b.local.Containers) {
		id, err := b.containerID(c.Name)
		if err != nil {
			return err
		}
		if !running[c.Name] {
			if err := b.d.Engine.SetRestartPolicy(ctx, id, restartPolicy(c)); err != nil {
				return err
			}
			continue
		}
		for _, dep := range c.DependsOn {
			if !running[dep.Container] || dep.Condition == engine.ConditionCompleted {
				continue // it was not running when this one was
			}
			if err := b.waitFor(ctx, dep.Container, dep.Condition); err != nil {
				return err
			}
		}
		if err := b.d.Engine.Start(ctx, id); err != nil {
			return err
		}
	}
	for _, c := range b.local.Containers {
		if !running[c.Name] {
			continue
		}
		if err := b.waitFor(ctx, c.Name, engine.ConditionHealthy); err != nil {
			return err
		}
	}
	return b.settleStarted(ctx)
}

// settleStarted gives the containers their captured restart policies, and
// pauses those that were paused.
func (b *bringUp) settleStarted(ctx context.Context) error {
	for _, c := range b.local.Containers {
		id, err := b.containerID(c.Name)
		if err != nil {
			return err
		}
		if err := b.d.Engine.SetRestartPolicy(ctx, id, restartPolicy(c)); err != nil {
			return err
		}
		if c.State == "paused" {
			if err := b.d.Engine.Pause(ctx, id); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bringUp) waitFor(ctx context.Context, name, condition string) error {
	id, err := b.containerID(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, b.o.HealthWait)
	defer cancel()
	err = b.d.Engine.WaitHealthy(ctx, id, engine.WaitOptions{Condition: condition})
	var unhealthy *engine.UnhealthyError
	if errors.As(err, &unhealthy) {
		return fmt.Errorf("container %s %w: %w", name, ErrUnhealthy, err)
	}
	return err
}

// stopStarted stops what start has started, keeping it from restarting.
func (b *bringUp) stopStarted(ctx context.Context) error {
	for _, c := range slices.Backward(startOrder(b.local.Containers)) {
		id, err := b.containerID(c.Name)
		if err != nil {
			return err
		}
		if err := errors.Join(b.d.Engine.DisableRestart(ctx, id), b.d.Engine.Stop(ctx, id, -1)); err != nil {
			return err
		}
	}
	return nil
}

// published lists where the system can be reached now.
func (b *bringUp) published(ctx context.Context) ([]Published, error) {
	inv, err := b.d.Engine.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	var out []Published
	for _, c := range inv.Containers {
		if !slices.ContainsFunc(b.local.Containers, func(x dr.Container) bool { return x.Name == c.Name }) {
			continue
		}
		for _, p := range c.Ports {
			if p.Port == 0 {
				continue
			}
			ip := p.IP
			if !ip.IsValid() {
				ip = netip.IPv4Unspecified()
			}
			out = append(out, Published{Container: c.Name, Port: fmt.Sprintf("%d/%s", p.Container, p.Proto), Host: netip.AddrPortFrom(ip, p.Port).String()})
		}
	}
	return out, nil
}
