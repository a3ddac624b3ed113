package web

import "net/http"

// contentSecurityPolicy allows what comes from this origin as a file and
// nothing that is inline. No script here makes markup from text; the one Trusted
// Types policy there may be names the service worker (static/js/worker.js).
const contentSecurityPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types lpmos"

// Headers sets the security headers of every page and static file before next
// answers. They are not for the API reference page, which has a policy of its
// own.
func Headers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		h := rw.Header()
		h.Set("Content-Security-Policy", contentSecurityPolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		// Nothing goes to other sites. Not no-referrer: with it browsers send
		// "Origin: null" with our own forms, and over plain HTTP, where there is
		// no Sec-Fetch-Site, http.CrossOriginProtection refuses them.
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()")
		next.ServeHTTP(rw, r)
	})
}
