package registry

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"
)

var hostRE = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)

// selfSignedYears is how long a self-signed certificate is valid: clients pin
// it, so a date adds nothing but an outage.
const selfSignedYears = 20

// loadPair reads a certificate with its key and says which file is to blame.
func loadPair(certFile, keyFile string) (*tls.Certificate, error) {
	certPEM, err := readBounded(certFile)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	keyPEM, err := readBounded(keyFile)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", certFile, keyFile, err)
	}
	if now := time.Now(); now.After(pair.Leaf.NotAfter) {
		return nil, fmt.Errorf("certificate %s expired at %s", certFile, pair.Leaf.NotAfter.Format(time.RFC3339))
	}
	return &pair, nil
}

// fingerprint is what clients pin: SHA-256 over the DER form of the leaf.
func fingerprint(pair *tls.Certificate) string {
	sum := sha256.Sum256(pair.Certificate[0])
	return "sha256:" + hex.EncodeToString(sum[:])
}

// selfSigned returns the certificate kept in dir, and makes it at the first
// call. It is never replaced by itself, for clients pin it; where it lacks one
// of hosts the log says so.
func selfSigned(dir string, hosts []string, log *slog.Logger) (certFile, keyFile string, err error) {
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	pair, err := loadPair(certFile, keyFile)
	if err == nil {
		for _, h := range hosts {
			if pair.Leaf.VerifyHostname(h) != nil {
				log.Warn("stored certificate does not name this host; clients that pin it go on, others need a new one: remove the directory to have it made", "host", h, "directory", dir)
			}
		}
		return certFile, keyFile, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", "", fmt.Errorf("stored certificate: %w; remove %s to have a new one made, with another fingerprint", err, dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", fmt.Errorf("make directory for the certificate: %w", err)
	}
	certPEM, keyPEM, err := makeSelfSigned(hosts)
	if err != nil {
		return "", "", fmt.Errorf("make certificate: %w", err)
	}
	// The key first: a certificate without its key would look like damage.
	if err := replaceFile(keyFile, keyPEM, 0o600); err != nil {
		return "", "", fmt.Errorf("write key: %w", err)
	}
	if err := replaceFile(certFile, certPEM, 0o644); err != nil {
		return "", "", fmt.Errorf("write certificate: %w", err)
	}
	return certFile, keyFile, nil
}

func makeSelfSigned(hosts []string) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "Lifeboat registry"},
		// Clocks of other hosts may be behind.
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.AddDate(selfSignedYears, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), nil
}

// certificateHosts lists what a self-signed certificate names: what was asked
// for, the address listened at (all of this host's where it is none in
// particular), loopback, and the host's name.
func certificateHosts(asked []string, listen string) []string {
	hosts := slices.Clone(asked)
	add := func(h string) {
		if h != "" && !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	host, _, _ := net.SplitHostPort(listen) // validated
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		addrs, _ := net.InterfaceAddrs() // without them the certificate names less
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() {
				add(n.IP.String())
			}
		}
	} else {
		add(host)
	}
	for _, h := range []string{"localhost", "127.0.0.1", "::1"} {
		add(h)
	}
	if name, err := os.Hostname(); err == nil && hostRE.MatchString(name) {
		add(name)
	}
	return hosts
}

// certificate serves a pair of files and takes up a renewed one.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu   sync.Mutex
	mod  time.Time
	pair *tls.Certificate
}

func newCertificate(certFile, keyFile string, log *slog.Logger) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, log: log}
	c.mod = c.modified()
	var err error
	c.pair, err = loadPair(certFile, keyFile)
	return c, err
}

func (c *certificate) modified() time.Time {
	fi, err := os.Stat(c.certFile)
	if err != nil {
		return time.Time{}
	}
	return fi.ModTime()
}

// get implements tls.Config.GetCertificate.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if mod := c.modified(); !mod.Equal(c.mod) {
		c.mod = mod
		pair, err := loadPair(c.certFile, c.keyFile)
		if err != nil {
			c.log.Error("renewed certificate not taken over", "err", err)
		} else {
			c.pair = pair
			c.log.Info("renewed certificate taken over", "fingerprint", fingerprint(pair))
		}
	}
	return c.pair, nil
}
