package freeze

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The test binary is also the guardian, and the parent that gets killed.
const holderCommand = "lbtest-holder"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case GuardianCommand:
			os.Exit(GuardianMain(GuardianConfig{NewPauser: newTestPauser}))
		case holderCommand:
			os.Exit(holderMain(os.Args[2]))
		case serverCommand:
			os.Exit(serverMain(os.Args[2:]))
		case factsCommand:
			os.Exit(factsMain(os.Args[2]))
		}
	}
	os.Exit(m.Run())
}

// holderConfig is what the parent in a test of sudden death does.
type holderConfig struct {
	StateDir   string
	FreezeMax  time.Duration
	Containers []Container
	// StopAt is the step at which it says "at STEP" and waits for a line.
	StopAt string
	// Engine maps ids to cgroup directories frozen by way of a Pauser.
	Engine map[string]string
	// BlockPause and BlockUnpause make the call for the id wait for a line.
	BlockPause, BlockUnpause string
}

// Results that the holder prints last.
const (
	resultOK     = "ok"
	resultBroken = "broken"
	resultError  = "error"
)

func holderMain(doc string) int {
	var cfg holderConfig
	if err := json.Unmarshal([]byte(doc), &cfg); err != nil {
		fmt.Println(resultError, err)
		return 1
	}
	in := bufio.NewReader(os.Stdin)
	stop := func(at string) {
		fmt.Println("at", at)
		_, _ = in.ReadString('\n')
	}
	host, err := OpenHost("/proc", "/sys/fs/cgroup")
	if err != nil {
		fmt.Println(resultError, err)
		return 1
	}
	sc := SetConfig{Host: host, Containers: cfg.Containers}
	if len(cfg.Engine) > 0 {
		spec, _ := json.Marshal(cfg.Engine)
		p, _ := newDirPauser(string(spec))
		sc.Pauser = blockingPauser{p, func(call, id string) {
			if call == "pause" && id == cfg.BlockPause || call == "unpause" && id == cfg.BlockUnpause {
				stop(call)
			}
		}}
		sc.PauserSpec = string(spec)
	}
	set, err := NewSet(sc)
	if err != nil {
		fmt.Println(resultError, err)
		return 1
	}
	defer set.Close()
	o := Options{StateDir: cfg.StateDir, FreezeMax: cfg.FreezeMax, onStep: func(s step) {
		if string(s) == cfg.StopAt {
			stop(cfg.StopAt)
		}
	}}
	_, err = Do(context.Background(), set, o, func(context.Context) error { return nil })
	switch {
	case err == nil:
		fmt.Println(resultOK)
	case errors.Is(err, ErrFreezeBroken):
		fmt.Println(resultBroken, err)
	default:
		fmt.Println(resultError, err)
	}
	return 0
}

// dirPauser is an engine that freezes cgroups by their directories, so that
// every process with the same spec reaches the same containers.
type dirPauser map[string]string

// newTestPauser makes either kind of test pauser by its spec.
func newTestPauser(spec string) (Pauser, error) {
	if strings.HasPrefix(spec, "unix://") {
		return cliPauser(spec), nil
	}
	return newDirPauser(spec)
}

func newDirPauser(spec string) (Pauser, error) {
	var p dirPauser
	if err := json.Unmarshal([]byte(spec), &p); err != nil {
		return nil, err
	}
	return p, nil
}

func (p dirPauser) file(id string) (path string, version int, err error) {
	dir, ok := p[id]
	if !ok {
		return "", 0, fmt.Errorf("no container %s", id)
	}
	for _, v := range []int{1, 2} {
		path = filepath.Join(dir, freezerFile(v))
		if _, err = os.Stat(path); err == nil {
			return path, v, nil
		}
	}
	return "", 0, err
}

func (p dirPauser) write(id string, freeze bool) error {
	f, v, err := p.file(id)
	if err != nil {
		return err
	}
	return os.WriteFile(f, []byte(freezerWord(v, freeze)), 0)
}

func (p dirPauser) Pause(ctx context.Context, id string) error {
	for {
		if err := p.write(id, true); err != nil {
			return err
		}
		f, v, err := p.file(id)
		if err != nil {
			return err
		}
		done := []string{"FROZEN\n"}
		if v == 2 {
			f, done = filepath.Join(filepath.Dir(f), statusFile(2)), []string{"populated 1\nfrozen 1\n"}
		}
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if slices.Contains(done, string(b)) {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		pause(ctx, time.Millisecond)
	}
}

func (p dirPauser) Unpause(_ context.Context, id string) error { return p.write(id, false) }

func (p dirPauser) Paused(_ context.Context, id string) (bool, error) {
	f, v, err := p.file(id)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if v == 1 {
		f = filepath.Join(filepath.Dir(f), statusFile(1))
	}
	b, err := os.ReadFile(f)
	return string(b) == "1\n", err
}

// blockingPauser calls before before each call.
type blockingPauser struct {
	Pauser
	before func(call, id string)
}

func (p blockingPauser) Pause(ctx context.Context, id string) error {
	p.before("pause", id)
	return p.Pauser.Pause(ctx, id)
}

func (p blockingPauser) Unpause(ctx context.Context, id string) error {
	p.before("unpause", id)
	return p.Pauser.Unpause(ctx, id)
}
