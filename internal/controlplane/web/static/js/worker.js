/**
 * Starts the service worker that keeps the static files. This is the only use
 * of a Trusted Types policy, and the policy lets nothing else through.
 */
const WORKER = '/sw.js'

const policy = window.trustedTypes?.createPolicy('lpmos', {
  createScriptURL(url) {
    if (url !== WORKER) throw new TypeError(`no script but ${WORKER}`)
    return url
  },
})

// There is none on plain HTTP beyond this machine, nor behind a certificate the
// browser does not trust: pages are then loaded as they would be anyway.
navigator.serviceWorker?.register(policy ? policy.createScriptURL(WORKER) : WORKER).catch(() => {})
