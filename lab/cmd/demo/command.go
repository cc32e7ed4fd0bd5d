package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"lifeboat/internal/quantity"
	"lifeboat/internal/ui"
	"lifeboat/lab"
)

// Exit codes of lifeboat that the story waits for (README.md, Commands).
const (
	exitDone   = 0
	exitFailed = 1
	exitFenced = 13
)

// patience is how long a command that was interrupted may take to put things in order.
const patience = 20 * time.Second

// run runs lifeboat at a site, showing the command, what it says and how it ends. With into its answer
// is decoded and not shown; the command is then to be given --json. Another exit code than want is an error.
func (d *director) run(ctx context.Context, site *lab.Site, want int, into any, args ...string) error {
	d.say(site, "$", "lifeboat "+quoted(args))
	cmd := site.Command(ctx, d.stage.binary, args...)
	// Ctrl-C is for the demo, which ends its commands one by one.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = patience
	if d.opts.verbose {
		cmd.Env = append(cmd.Env, "LIFEBOAT_LOG=info")
	}
	var answer bytes.Buffer
	told := d.teller(site)
	cmd.Stderr = told
	cmd.Stdout = told
	if into != nil {
		cmd.Stdout = &answer
	}
	began := time.Now()
	err := cmd.Run()
	told.Close()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("run lifeboat %s at %s: %w", args[0], site.Name, err)
	}
	code := cmd.ProcessState.ExitCode()
	d.say(site, "", fmt.Sprintf("exit %d after %s", code, quantity.Duration(time.Since(began))))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if code != want {
		return &exitError{command: args[0], site: site.Name, code: code, want: want, said: told.said.String()}
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(answer.Bytes(), into); err != nil {
		return fmt.Errorf("lifeboat %s at %s: its answer is not one JSON document: %w: %.300s", args[0], site.Name, err, answer.String())
	}
	return nil
}

// exitError is a lifeboat that did not end as the story goes.
type exitError struct {
	command, site string
	code, want    int
	said          string
}

// Error leaves out what was shown already.
func (e *exitError) Error() string {
	return fmt.Sprintf("lifeboat %s at %s: exit %d, want %d; what it said stands above", e.command, e.site, e.code, e.want)
}

// quoted shows arguments as a shell takes them.
func quoted(args []string) string {
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = a
		if strings.ContainsAny(a, " \t\n'\"$&|;<>()*?") {
			out[i] = strconv.Quote(a)
		}
	}
	return strings.Join(out, " ")
}

// say writes a line of a site: a command after "$", or how it ended. A command that is too long for the
// terminal is continued as a shell takes it.
func (d *director) say(site *lab.Site, sign, text string) {
	d.out.Show(ui.ViewFunc(func(c *ui.Canvas) {
		if sign == "" {
			c.Line("%s %s", margin(site), ui.Clean(text))
			return
		}
		lines := wrap(ui.Clean(text), c.Width-len(margin(site))-5)
		for i, line := range lines {
			if i < len(lines)-1 {
				line += ` \`
			}
			c.Line("%s %s", margin(site), c.Bold(sign+" "+line))
			sign = "   "
		}
	}))
}

// wrap breaks text between words where a line would be longer than width; words that are longer stay whole.
func wrap(text string, width int) []string {
	lines := []string{""}
	for _, word := range strings.Split(text, " ") {
		last := &lines[len(lines)-1]
		switch {
		case *last == "":
			*last = word
		case width > 0 && utf8.RuneCountInString(*last)+1+utf8.RuneCountInString(word) > width:
			lines = append(lines, word)
		default:
			*last += " " + word
		}
	}
	return lines
}

// margin tells at which site something happens.
func margin(site *lab.Site) string { return fmt.Sprintf("  %-7s", site.Name) }

// hidden begins a part of what lifeboat says that repeats what the command line shows, for each object
// and with the long paths of a laboratory.
const hidden = "overrides of this site"

// teller shows lines of a command as they come, but for the hidden part, which ends with an empty line.
func (d *director) teller(site *lab.Site) *teller {
	r, w := io.Pipe()
	t := &teller{PipeWriter: w}
	t.done.Add(1)
	go func() {
		defer t.done.Done()
		lines := bufio.NewReader(r)
		hiding := false
		for {
			line, err := lines.ReadString('\n')
			text := strings.TrimRight(line, "\n")
			t.said.WriteString(line)
			switch {
			case text == hidden, hiding && text != "":
				hiding = true
			case hiding:
				hiding = false
			case text != "" || err == nil:
				d.out.Note("%s", strings.TrimRight(margin(site)+" | "+strings.ReplaceAll(text, "\t", "    "), " "))
			}
			if err != nil {
				return
			}
		}
	}()
	return t
}

type teller struct {
	*io.PipeWriter
	done sync.WaitGroup
	said strings.Builder // to be read after Close
}

// Close returns when everything was shown.
func (t *teller) Close() error {
	err := t.PipeWriter.Close()
	t.done.Wait()
	return err
}

// Answers of lifeboat, with the keys that the story needs. They are the contract's.

type snapshotAnswer struct {
	Snapshot     string    `json:"snapshot"`
	Created      time.Time `json:"created"`
	BytesScanned int64     `json:"bytes_scanned"`
	BytesNew     int64     `json:"bytes_new"`
	BytesSent    int64     `json:"bytes_sent"`
	FreezeMS     float64   `json:"freeze_ms"`
	ElapsedMS    int64     `json:"elapsed_ms"`
}

type bringAnswer struct {
	Snapshot      string `json:"snapshot"`
	Epoch         int    `json:"epoch"`
	RTOMS         int64  `json:"rto_ms"`
	BytesFetched  int64  `json:"bytes_fetched"`
	BytesReceived int64  `json:"bytes_received"`
	Divergent     string `json:"divergent"`
	Ports         []struct {
		Container string `json:"container"`
		Port      string `json:"port"`
		Host      string `json:"host"`
	} `json:"ports"`
}

type listAnswer struct {
	Snapshots []listedSnapshot `json:"snapshots"`
}

type listedSnapshot struct {
	Snapshot   string  `json:"snapshot"`
	Number     int     `json:"number"`
	Site       string  `json:"site"`
	Kind       string  `json:"kind"`
	BytesTotal int64   `json:"bytes_total"`
	BytesNew   int64   `json:"bytes_new"`
	BytesSent  int64   `json:"bytes_sent"`
	FreezeMS   float64 `json:"freeze_ms"`
}
