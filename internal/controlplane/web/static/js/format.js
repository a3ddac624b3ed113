/**
 * Numbers and times as the server writes them (format.go), in the browser's
 * own time zone.
 */
import { chinese, t } from './words.js'

const NBSP = '\u00a0'
const DAY = 24 * 3600_000
const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec']

const two = (n) => String(n).padStart(2, '0')

/** Thousands with a comma. */
export const count = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, ',')

/** 48 %, never broken. */
export const percent = (n) => (chinese ? `${n}%` : `${n}${NBSP}%`)

/** Bytes in decimal units, as on a disk's label. */
export function size(n) {
  if (!(n >= 0)) return t('unknown')
  if (n < 1000) return `${n}${NBSP}B`
  let unit = ''
  for (unit of ['kB', 'MB', 'GB', 'TB', 'PB']) {
    n /= 1000
    if (n < 999.5) break
  }
  // From a terabyte on three digits are kept: 7.68 TB and 7.7 TB are two products.
  const large = unit === 'TB' || unit === 'PB'
  const digits = large && n < 9.995 ? 2 : (large && n < 99.95) || n < 9.95 ? 1 : 0
  return Number(n.toFixed(digits)) + NBSP + unit
}

/** How many bytes of how many are there. */
export function amount({ bytes_downloaded: done, bytes_total: total } = {}) {
  if (!(total > 0)) return '–'
  return done > 0 ? t('%s of %s', size(done), size(total)) : t('0 of %s', size(total))
}

/** Bytes per second as MB/s; what would be 0.0 of them in full. */
export function speed(n) {
  if (!(n > 0)) return t('unknown')
  if (n < 5e4) return size(n) + '/s'
  const mb = n / 1e6
  return (mb < 9.95 ? mb.toFixed(1) : count(Math.round(mb))) + NBSP + 'MB/s'
}

/** Time until the bytes of a stage are there, rounded. */
export function left(details) {
  const { bytes_total: total, bytes_downloaded: done, bytes_per_second: rate } = details ?? {}
  if (!(rate > 0) || !(total > 0)) return t('unknown')
  return rounded((total - (done ?? 0)) / rate)
}

/** A time to come, of so many seconds. */
export function rounded(seconds) {
  const s = Math.floor(seconds)
  if (s < 0 || s > 24 * 3600) return t('unknown') // a speed that says a day is the speed of a beginning
  if (s < 60) return `${Math.floor(s / 10) * 10 + 10}${NBSP}${t('s')}`
  if (s < 7200) return `${Math.floor((s + 30) / 60)}${NBSP}${t('min')}`
  return `${Math.floor((s + 1800) / 3600)}${NBSP}${t('h')}`
}

/** "18 min" of milliseconds. */
export function age(ms) {
  const s = Math.max(0, Math.floor(ms / 1000))
  if (s < 60) return `${s}${NBSP}${t('s')}`
  if (s < 3600) return `${Math.floor(s / 60)}${NBSP}${t('min')}`
  if (s < 48 * 3600) return `${Math.floor(s / 3600)}${NBSP}${t('h')}`
  return `${count(Math.floor(s / 86400))}${NBSP}${t('days')}`
}

/** How long something lasted, in ms: 9 s, 3 min 2 s, 2 h 5 min. */
export function took(ms) {
  const s = Math.max(0, Math.round(ms / 1000))
  const two = (a, unitA, b, unitB) => `${a}${NBSP}${unitA}` + (b ? `${NBSP}${b}${NBSP}${unitB}` : '')
  if (s < 60) return `${s}${NBSP}${t('s')}`
  if (s < 3600) return two(Math.floor(s / 60), t('min'), s % 60, t('s'))
  return two(Math.floor(s / 3600), t('h'), Math.floor(s / 60) % 60, t('min'))
}

const clock = (d) => `${two(d.getHours())}:${two(d.getMinutes())}`

/** A Date as 14:32, or 14:32:08 for form "seconds"; older than a day with its date. */
export function when(date, form) {
  const time = form === 'seconds' ? `${clock(date)}:${two(date.getSeconds())}` : clock(date)
  if (Math.abs(Date.now() - date) < DAY) return time
  const day = chinese ? `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}` : `${date.getDate()} ${MONTHS[date.getMonth()]} ${date.getFullYear()}`
  return form === 'seconds' ? `${day}, ${time}` : day
}

/** Writes every <time> under root in local time; its title keeps UTC. */
export function localTimes(root) {
  for (const el of root.querySelectorAll('time[datetime]')) {
    const date = new Date(el.dateTime)
    if (!Number.isNaN(date.getTime())) el.textContent = when(date, el.dataset.form)
  }
}

/** A <time> of now. */
export function timeElement(date, form) {
  const el = document.createElement('time')
  el.dateTime = date.toISOString()
  el.title = date.toISOString().replace('T', ' ').slice(0, 19) + ' UTC'
  el.dataset.form = form
  el.textContent = when(date, form)
  return el
}
