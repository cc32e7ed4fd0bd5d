package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"lifeboat/internal/dr"
	"lifeboat/internal/registry"
)

// newRegistryCmd is the command group around the embedded registry.
func newRegistryCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "registry",
		Short: "Run Lifeboat's own OCI registry",
	}
	cmd.AddCommand(newRegistryServeCmd(), newRegistryPasswdCmd())
	return cmd
}

func newRegistryServeCmd() *cobra.Command {
	var cfg registry.Config
	var insecure, plain bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve an OCI registry that keeps its data in a directory",
		Long: `Serve an OCI registry that keeps its data in a directory.

Without --tls-cert a self-signed certificate is made at the first start and kept
in the data directory; its fingerprint is printed, and clients pin it. Without
--htpasswd everybody who reaches the address may write and delete, so that is
for loopback addresses only. A roles file limits what users may do; without one
every user is an operator. All three kinds of files are taken up again when they
change.

It runs until SIGINT or SIGTERM, then lets requests in progress finish.`,
		Example: `  # on this host only, with TLS and no login
  lifeboat registry serve --listen 127.0.0.1:5000 --data /var/lib/lifeboat/registry

  # for other hosts
  lifeboat registry passwd --htpasswd /etc/lifeboat/htpasswd main-site
  lifeboat registry serve --listen :5000 --data /var/lib/lifeboat/registry \
      --htpasswd /etc/lifeboat/htpasswd --tls-host registry.example.org`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Insecure, cfg.PlainHTTP = insecure, insecure || plain
			cfg.Logger = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelInfo}))
			return serveRegistry(cmd, cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Listen, "listen", "127.0.0.1:5000", "address to listen at, `HOST:PORT`; an empty host means all addresses")
	f.StringVar(&cfg.Data, "data", "", "`DIR`ectory that holds the data; made where it is missing")
	f.BoolVar(&insecure, "insecure", false, "plain HTTP at any address: whoever listens in reads passwords")
	f.BoolVar(&plain, "plain-http", false, "plain HTTP, on loopback addresses only")
	f.StringVar(&cfg.TLSCert, "tls-cert", "", "certificate `FILE` (PEM, with intermediates)")
	f.StringVar(&cfg.TLSKey, "tls-key", "", "key `FILE` of the certificate (PEM)")
	f.StringSliceVar(&cfg.TLSHosts, "tls-host", nil, "host name or address that a self-signed certificate shall name (repeatable)")
	f.StringVar(&cfg.Htpasswd, "htpasswd", "", "`FILE` of users with bcrypt hashes; see lifeboat registry passwd")
	f.BoolVar(&cfg.AllowAnonymous, "insecure-no-auth", false, "serve without users at any address: everybody may write and delete")
	f.StringVar(&cfg.Roles, "roles", "", "YAML `FILE` of access roles: USER: {role: writer|reader|standby|operator, names: [...], systems: [...]}")
	return cmd
}

func serveRegistry(cmd *cobra.Command, cfg registry.Config) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	srv, err := registry.New(cfg)
	if err != nil {
		return err
	}
	if err := printServing(cmd, cfg, srv); err != nil {
		return errors.Join(err, srv.Close())
	}
	return srv.Serve(ctx)
}

// printServing says where the registry is and how to reach it.
func printServing(cmd *cobra.Command, cfg registry.Config, srv *registry.Server) error {
	scheme := "oci"
	if cfg.PlainHTTP {
		scheme = "oci+http"
	}
	out := cmd.OutOrStdout()
	if asJSON, err := cmd.Flags().GetBool("json"); err == nil && asJSON {
		return json.NewEncoder(out).Encode(map[string]string{"listen": srv.Addr(), "scheme": scheme, "fingerprint": srv.Fingerprint()})
	}
	host, port, err := net.SplitHostPort(srv.Addr())
	if err != nil {
		return fmt.Errorf("address of the registry: %w", err)
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "HOST"
		if len(cfg.TLSHosts) > 0 {
			host = cfg.TLSHosts[0]
		}
	}
	_, err = fmt.Fprintf(out, "registry    %s\nrepository  %s://%s/NAME\n", srv.Addr(), scheme, net.JoinHostPort(host, port))
	if err == nil && srv.Fingerprint() != "" {
		_, err = fmt.Fprintf(out, "fingerprint %s\n", srv.Fingerprint())
	}
	return err
}

func newRegistryPasswdCmd() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "passwd USER",
		Short: "Add a user to an htpasswd file, or change the password",
		Long: `Add a user to an htpasswd file, or change the password.

The password is asked for twice on a terminal, else the first line of standard
input is taken. It is stored as a bcrypt hash; the file has mode 0600 and is
replaced atomically. A running registry takes the change up.`,
		Example: `  lifeboat registry passwd --htpasswd /etc/lifeboat/htpasswd main-site
  pwgen -s 32 1 | tee main-site.password | lifeboat registry passwd --htpasswd /etc/lifeboat/htpasswd main-site`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if file == "" {
				return fmt.Errorf("--htpasswd FILE is missing: %w", dr.ErrUsage)
			}
			password, err := readNewPassword(cmd)
			if err != nil {
				return err
			}
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				return fmt.Errorf("directory of the htpasswd file: %w", err)
			}
			if err := registry.SetPassword(file, args[0], password); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.ErrOrStderr(), "password of %s set in %s\n", args[0], file)
			return err
		},
	}
	cmd.Flags().StringVar(&file, "htpasswd", "", "htpasswd `FILE`; made where it is missing, with its directory")
	return cmd
}

// readNewPassword asks on a terminal, and takes one line from anything else.
func readNewPassword(cmd *cobra.Command) ([]byte, error) {
	if f, ok := cmd.InOrStdin().(interface{ Fd() uintptr }); ok && term.IsTerminal(int(f.Fd())) {
		return askNewPassword(cmd, int(f.Fd()))
	}
	line, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 4096)).ReadBytes('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read password: %w", err)
	}
	password := []byte(strings.TrimRight(string(line), "\r\n"))
	if len(password) == 0 {
		return nil, fmt.Errorf("no password on standard input: %w", dr.ErrUsage)
	}
	return password, nil
}

func askNewPassword(cmd *cobra.Command, fd int) ([]byte, error) {
	var answers [2][]byte
	for i, prompt := range []string{"New password: ", "Again: "} {
		fmt.Fprint(cmd.ErrOrStderr(), prompt)
		b, err := term.ReadPassword(fd)
		fmt.Fprintln(cmd.ErrOrStderr())
		if err != nil {
			return nil, fmt.Errorf("read password: %w", err)
		}
		answers[i] = b
	}
	if !bytes.Equal(answers[0], answers[1]) {
		return nil, fmt.Errorf("the two passwords differ; nothing was changed: %w", dr.ErrUsage)
	}
	return answers[0], nil
}
